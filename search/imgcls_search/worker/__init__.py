"""The work of a worker process: one trial, from its configuration to its events."""
