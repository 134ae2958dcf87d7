"""What the queue's scripts and Python must agree on; ``scripts`` passes it to the scripts."""

from farm.job import Priority

MAX_ROWS = 200  # tasks, receipts or jobs in a call; more would block Redis for milliseconds
CLASSES = tuple(Priority)  # highest first; Redis stores a class as its place here
