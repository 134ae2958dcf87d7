"""What a verification finds."""

import enum
from typing import NamedTuple


class Kind(enum.StrEnum):
    MISSING = "missing"  # an object that should be in the store
    WRONG_SIZE = "wrong-size"  # an object with pictures, and so its sha256
    WRONG_SHA256 = "wrong-sha256"  # such an object of the right size
    PART_MISSING = "part-missing"
    PART_CHANGED = "part-changed"  # other bytes than its receipt says
    LISTED_TWICE = "listed-twice"  # a picture
    ORPHAN = "orphan"  # an object that nothing lists
    COUNT = "count"  # the queue counts otherwise


class Difference(NamedTuple):
    kind: Kind
    subject: str  # a key, or the name of a counter
    expected: str = ""
    found: str = ""
    task: int | None = None  # number of the task it belongs to
