"""What has happened since the queue began, counted by its scripts (``lua/parts/tallies.lua``)."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Self

from farm.job import Priority
from farm.queue.constants import CLASSES

WAIT_BUCKETS = (0.1, 0.5, 1.0, 5.0, 15.0, 60.0, 300.0, 1800.0, 7200.0)  # seconds; one more without

RETURNED = ("row", "crash", "infra", "release")
FAILED = ("row", "crash", "infra", "expired")
ENDED = ("crash", "drain", "lost")


class Waits(NamedTuple):
    """How long the jobs of a class waited before they began."""

    jobs: tuple[int, ...]  # by bucket, not cumulative; the last one has no bound
    seconds: float  # together


class Tenant(NamedTuple):
    """What a tenant got."""

    pictures: int
    row_steps: int


class Tallies(NamedTuple):
    """Numbers that only grow, and for how long the oldest ready job of each class has waited."""

    leases: int  # tasks that were granted
    leases_lost: int  # tasks held by sessions that crashed or were lost
    returned: Mapping[str, int]  # leases that ended without a receipt, by RETURNED
    failed: Mapping[str, int]  # pictures, by FAILED
    sessions: Mapping[str, int]  # that ended, by ENDED
    tenants: Mapping[str, Tenant]
    waits: Mapping[Priority, Waits]
    oldest_seconds: Mapping[Priority, float]

    @classmethod
    def of(cls, reply: Sequence[Any]) -> Self:
        """From what ``lua/tallies.lua`` returns."""
        flat, names, *ages = reply
        numbers = {name: int(value) for name, value in _pairs(flat)}
        groups: dict[str, Counter[str]] = {}
        for name, value in numbers.items():
            kind, _, what = name.partition(":")
            groups.setdefault(kind, Counter())[what] = value
        texts = dict(_pairs(names))

        def group(kind: str) -> Counter[str]:
            return groups.get(kind, Counter())

        return cls(
            leases=numbers.get("leases", 0),
            leases_lost=numbers.get("leases-lost", 0),
            returned=group("returned"),
            failed=group("failed"),
            sessions=group("sessions"),
            tenants={
                texts[tenant]: Tenant(pictures, group("row-steps")[tenant])
                for tenant, pictures in group("pictures").items()
                if tenant in texts
            },
            waits={
                CLASSES[rank]: Waits(
                    tuple(group("waited")[f"{rank}:{at + 1}"] for at in range(_BUCKETS)),
                    group("waited-ms")[str(rank)] / 1000,
                )
                for rank in sorted({int(name.partition(":")[0]) for name in group("waited")})
            },
            oldest_seconds={CLASSES[rank]: ms / 1000 for rank, ms in ages},
        )


_BUCKETS = len(WAIT_BUCKETS) + 1


def _pairs(flat: Sequence[Any]) -> list[tuple[str, Any]]:
    return list(zip(flat[::2], flat[1::2], strict=True))
