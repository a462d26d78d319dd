"""Smaller and faster networks: teachers, removed weights, 8-bit integers."""
