"""Several kept networks of a study as one: picked, saved, tested, and taught to a single one."""
