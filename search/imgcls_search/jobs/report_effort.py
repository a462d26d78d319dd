"""How many multiply-accumulates a report spends on a network beyond its validation images."""

CORRUPTED_MACS = 3e11
"""To score corrupted images, beyond the fewest: about half a minute of one core."""

MOST_CORRUPTED, LEAST_CORRUPTED = 200, 30
"""Most and fewest images to corrupt."""

CORRUPTED_VERSIONS = 15
"""Versions of each of them: every corruption in every severity."""

SIMILAR_MACS = 5e11
"""To find similar training images; a random sample is searched if all would need more."""
