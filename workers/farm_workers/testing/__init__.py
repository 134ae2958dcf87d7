"""Checkpoints, failures and traces that tests need."""
