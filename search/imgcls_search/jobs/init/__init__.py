"""Draft a search space from a data set, the machine and the given time."""
