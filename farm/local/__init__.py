"""A whole farm on one machine: its processes, its Valkey server, and its check-up."""
