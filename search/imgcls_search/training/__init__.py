"""One training: the loop, its metrics, its checkpoints. Knows nothing of searches."""
