"""A job's manifest, queue and store compared, and what differs repaired."""
