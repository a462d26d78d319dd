"""Smaller and faster networks: distillation, pruning, 8-bit quantization."""
