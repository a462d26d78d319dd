"""The study: its files, its lock, its record in a database that plain Optuna can read."""
