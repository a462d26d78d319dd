"""What to do next: which configuration to try, and which trials to stop, rest or take further."""
