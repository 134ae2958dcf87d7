"""What a worker still has to send to its publisher process, and in which order."""

import collections

from farm_workers.publisher.messages import Drop, LeaseUntil, Work

RECORD_BYTES = 4096  # about what a picture takes besides its pixels


class PendingUpload:
    """A piece of work until it is answered."""

    def __init__(self, work: Work, *, urgent: bool, pixels: memoryview | None = None) -> None:
        self.work = work
        self.urgent = urgent
        self.pixels = pixels
        self.size = RECORD_BYTES + (pixels.nbytes if pixels is not None else 0)
        self.sent: int | None = None  # its place in the order of sending
        self.deaths = 0


class Outbox:
    """What is still to be sent: leases and drops first, then urgent work, then the rest."""

    def __init__(self) -> None:
        self.orders: collections.deque[LeaseUntil | Drop] = collections.deque()
        self.urgent: collections.deque[PendingUpload] = collections.deque()
        self.parcels: collections.deque[PendingUpload] = collections.deque()

    def add(self, parcel: PendingUpload) -> None:
        (self.urgent if parcel.urgent else self.parcels).append(parcel)

    def next(self, *, room: bool) -> PendingUpload | LeaseUntil | Drop | None:
        """The next thing to send; without room, an order at most."""
        if self.orders:
            return self.orders.popleft()
        if not room:
            return None
        return (self.urgent or self.parcels).popleft() if self.urgent or self.parcels else None

    def forget(self, task: int) -> None:
        self.orders = collections.deque(item for item in self.orders if item.task != task)
        self.urgent = collections.deque(item for item in self.urgent if item.work.task != task)
        self.parcels = collections.deque(item for item in self.parcels if item.work.task != task)
