"""Checkpoints: what one on disk can do, and those that a farm serves."""
