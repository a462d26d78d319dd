"""Inside a worker: one trial's work, from its configuration to its events."""
