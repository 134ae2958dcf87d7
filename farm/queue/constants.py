"""What the queue's scripts and Python must agree on; ``scripts`` passes it to the scripts."""

from farm.job import OPEN_HOURS, RETENTION_DAYS, SETTLED_HOURS, Priority

MAX_ROWS = 200  # tasks, receipts or jobs in a call; more would block Redis for milliseconds
CLASSES = tuple(Priority)  # highest first; Redis stores a class as its place here
MAX_TENANT_LANES = 1024  # in which a tenant may have unfinished work; each costs every plan a bit
SCHEMA = 1  # of the records and keys; raised where an older farm would misread them
RETENTION_MS = int(RETENTION_DAYS * 86_400_000)  # where nothing else was set
PATIENCE_MS = int(OPEN_HOURS * 3_600_000)
SETTLED_MS = int(SETTLED_HOURS * 3_600_000)
