"""A queue with helpers that read like the sentences of the tests; its clock is moved, not slept."""

import itertools
import secrets
from collections.abc import Callable, Mapping
from typing import Any

from farm.errors import Unavailable
from farm.job import JobOptions, Lease, Receipt, TaskDraft, job_id
from farm.queue import JobHeader, Queue
from farm.spec import Lane, Mode

CHECKPOINT = "amused/amused-256@r1"
LANE = Lane(CHECKPOINT, Mode.TEXT2IMG, 256, 256)
OTHER_LANE = Lane("other/model@r1", Mode.IMG2IMG, 512, 256)
MS = 30_000


def moved_clock(scripts: Mapping[str, str]) -> dict[str, str]:
    """The scripts with a clock that also runs ahead by what a test has put into a key."""
    return {
        name: source.replace(
            "local now, microsecond = clock()",
            "local now, microsecond = clock()\n"
            "now = now + tonumber(redis.call('GET', P .. 'test-clock') or 0)",
        )
        for name, source in scripts.items()
    }


def until_heard(call: Callable[[], Any]) -> Any:
    """As the farm's loops do."""
    while True:
        try:
            return call()
        except Unavailable:
            continue


class Bench:
    """A queue with helpers that read like the sentences of the tests."""

    def __init__(self, queue: Queue) -> None:
        self.queue = queue
        self.numbers = itertools.count()

    def advance(self, seconds: float) -> None:
        """Time passes, in which ``tick`` is called as it always is."""
        clock, moved = f"{{{self.queue.farm}}}:test-clock", int(seconds * 1000)
        now = self.queue.now_ms() + int(self.queue.client.get(clock) or 0)
        with self.queue.client.pipeline(transaction=False) as together:
            together.incrby(clock, moved)
            if moved > 0:
                together.set(f"{{{self.queue.farm}}}:ticked", now + moved - 150)
            together.execute()

    def jump(self, seconds: float) -> None:
        """The clock is set ahead, or everything stands still meanwhile."""
        self.queue.client.incrby(f"{{{self.queue.farm}}}:test-clock", int(seconds * 1000))

    def header(
        self, tenant: str = "ann", fingerprint: str = "f" * 64, **options: object
    ) -> JobHeader:
        return JobHeader(job_id(), tenant, JobOptions.model_validate(options), fingerprint)

    def tasks(
        self, count: int, *, pictures: int = 4, cost: int = 48, first: int = 0, lane: Lane = LANE
    ) -> list[TaskDraft]:
        return [TaskDraft(first + at, lane, pictures, cost) for at in range(count)]

    def submit(
        self,
        count: int = 1,
        *,
        tenant: str = "ann",
        pictures: int = 4,
        cost: int = 48,
        lane: Lane = LANE,
        **options: object,
    ) -> str:
        tasks = self.tasks(count, pictures=pictures, cost=cost, lane=lane)
        return self.queue.submit(self.header(tenant, **options), tasks).job

    def session(self, checkpoints: tuple[str, ...] = (CHECKPOINT,), **info: str) -> str:
        session = secrets.token_hex(16)
        told = {"host": "here", **info}
        self.queue.register(session, f"worker-{next(self.numbers)}", checkpoints, told)
        return session

    def lease(self, session: str, room: int = 1000, limit: int = 32) -> list[Lease]:
        return self.queue.lease(session, None, room, MS, limit)

    def receipt(self, lease: Lease, failed: int = 0) -> Receipt:
        return Receipt(
            done=lease.pictures - failed, failed=failed, size=1000, part=f"{lease.key}.parquet",
            part_sha256="a" * 64, numerics="cpu-fp32",
        )  # fmt: skip

    def complete(self, session: str, lease: Lease, failed: int = 0) -> str:
        outcome = self.queue.complete(session, lease, self.receipt(lease, failed))
        return str(outcome.verdict)
