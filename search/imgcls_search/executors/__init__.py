"""Where trials run, behind the `Executor` protocol."""
