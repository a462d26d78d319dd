"""Inspect a data set: counts, sizes, copies and labels that are likely wrong, and a table without them."""
