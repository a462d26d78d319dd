"""From images to a deployed model in one call: draft a space, search, confirm, bundle, report, within one time."""
