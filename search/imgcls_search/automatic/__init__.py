"""Go from images to a deployed model in one call: draft a space, search, confirm, bundle and report in a given time."""
