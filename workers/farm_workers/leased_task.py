"""One lease of a task: the record that queue session, engine loop and publisher share."""

import itertools
import time
from typing import Literal, NamedTuple

from farm.formats.manifest import ManifestRow
from farm.formats.token_pictures import TokenPictures
from farm.job import Lease, Priority, Receipt
from farm.sinks.protocol import TaskPlace

_numbers = itertools.count()


class Outcome(NamedTuple):
    """How a lease ended: done if there is a receipt, else failed for ``kind`` and ``reason``."""

    receipt: Receipt | None
    kind: Literal["row", "crash", "infra", "release"] = "infra"
    reason: str = ""


class LeasedTask:
    """One lease of a task, from its grant until the queue has heard how it ended.

    Granted again after it was dropped, the same task is another ``LeasedTask`` with another number.
    Every field has one writer, named below; all threads may read.
    """

    def __init__(self, lease: Lease) -> None:
        self.lease = lease
        self.key = lease.key
        self.number = next(_numbers)  # of this lease in this process
        self.urgent = lease.priority is Priority.URGENT
        self.pictures = lease.pictures
        self.since = time.monotonic()

        # The lease table.
        self.outcome: Outcome | None = None  # once nothing more of it is rendered

        # Who hands it back to the queue.
        self.halted = False  # nothing more of it is rendered; what is made is still stored

        # The engine loop.
        self.begun = False  # a row of it has been in an engine
        self.place: TaskPlace | None = None  # of its results; None until it is loaded
        self.next_row: int | None = None  # that runs next, of a task whose rows run one by one
        self.announced_row: int | None = None  # the last of those that the queue has heard of

        # The publisher.
        self.closed = False  # ended or dropped: nothing more of it is stored
        self.deadline: float | None = None  # of ``time.monotonic``; nothing is written after it
        self.handed_over = 0  # pictures given to the publisher, failed ones included
        self.rows: list[ManifestRow] = []  # of the pictures that are stored or failed
        self.tokens: TokenPictures | None = None  # those of which nothing else is kept
        self.told = 0  # rows that readers can see before the task ends
        self.tell_at: float | None = None  # of ``time.monotonic``: when they get the others
        self.cut_short = False  # its job was cancelled: it ends with the pictures that it has
        self.stored = 0
        self.failed = 0

    @property
    def lease_name(self) -> str:
        """Of this attempt at the task, in traces."""
        return f"{self.key}/{self.lease.attempt}"

    @property
    def to_render(self) -> int:
        """Pictures that are still to be made."""
        over = self.outcome is not None or self.cut_short
        return 0 if over else self.pictures - self.handed_over

    @property
    def settled(self) -> bool:
        """Whether it is unfinished, and every picture of it that was made is stored or failed."""
        return self._ended == self.handed_over < self.pictures

    @property
    def whole(self) -> bool:
        """Whether all of its pictures are stored or failed."""
        return self._ended == self.pictures

    @property
    def _ended(self) -> int:
        return len(self.rows) + len(self.tokens or ())

    def add_tokens(self, made: TokenPictures) -> None:
        """More pictures, of which nothing but the tokens is kept."""
        self.stored += len(made)
        if self.tokens is None:
            self.tokens = made
        else:
            self.tokens.extend(made)

    def add_row(self, row: ManifestRow) -> None:
        """One more picture is stored or failed."""
        self.rows.append(row)
        if row.error is None:
            self.stored += 1
        else:
            self.failed += 1
