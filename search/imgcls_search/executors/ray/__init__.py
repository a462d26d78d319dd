"""Trials on a Ray cluster. Nothing here imports Ray before `cluster.join` is called."""
