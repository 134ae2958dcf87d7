"""Which worker gets which lanes, and where the workers run."""
