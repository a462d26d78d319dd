"""One training: its loop, metrics and checkpoints. Independent of searches."""
