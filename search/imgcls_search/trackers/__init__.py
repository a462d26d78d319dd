"""Show a study outside its own database: one client per tracker, each in its own process."""
