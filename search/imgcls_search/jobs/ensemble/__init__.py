"""Combine kept networks of a study: pick and save an ensemble, test it, and distill it into one network."""
