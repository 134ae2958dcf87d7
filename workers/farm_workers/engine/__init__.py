"""Continuous batching for aMUSEd; importing it loads neither ray nor redis."""
