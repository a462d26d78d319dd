"""Drafts a search space from a data set, the machine and the time there is."""
