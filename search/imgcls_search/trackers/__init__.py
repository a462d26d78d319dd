"""Where a study is shown besides its own database: one client for each tracker, each in a process of its own."""
