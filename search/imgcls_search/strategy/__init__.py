"""Decide what to do next: which configuration to try, and which trials to stop, pause or promote."""
