"""How jobs come into the queue: as submissions, and back from the store."""

from collections.abc import Collection, Sequence
from datetime import datetime
from typing import Any

from farm.job import TaskDraft, check_job_id
from farm.queue import encoding
from farm.queue.connection import explained
from farm.queue.constants import PATIENCE_MS
from farm.queue.messages import JobHeader, Restored, Submitted
from farm.queue.script_runner import ScriptRunner
from farm.spec import Lane


class Submissions(ScriptRunner):
    """A job comes in whole or by pieces; its header and chunks are in the store before."""

    def open(self, header: JobHeader) -> Submitted:
        """Start a job whose tasks come in pieces; the same submission again finds the same job."""
        job, created = self._accept("open", *encoding.header_arguments(header))
        return Submitted(job, bool(created))

    def append(
        self, job: str, piece: int, sha256: str, tasks: Sequence[TaskDraft], rejected: int = 0
    ) -> bool:
        """Add a piece to an open job; False if it was added before. Its tasks may run at once."""
        return bool(
            self._accept(
                "append",
                check_job_id(job),
                piece,
                sha256,
                rejected,
                *encoding.task_arguments(tasks),
            )
        )

    def find_submitted(self, header: JobHeader) -> str | None:
        """The job that an earlier call of the same submission made, by its idempotency key."""
        key = header.options.idempotency_key or ""
        found: str | None = self._run("find_submitted", header.tenant, header.fingerprint, key)
        return found

    def submitted(self, tenant: str, key: str) -> bool:
        """Whether the idempotency key has a job that came in whole."""
        return bool(self._run("submitted", tenant, key))

    @explained
    def appended(self, job: str, first: int, count: int) -> list[bool]:
        """Of so many pieces from ``first`` on, whether each was appended before."""
        numbers = range(first, first + count)
        known: Any = self.client.hmget(f"{self._prefix}pieces:{job}", [*map(str, numbers)])
        return [one is not None for one in known]

    @explained
    def note_lanes(self, job: str, lanes: Collection[Lane], most: int) -> bool:
        """Note the lanes of an open job's piece; False, and none noted, if that is too many."""
        key, names = f"{self._prefix}lanes-of:{job}", [str(lane) for lane in lanes]
        pipe = self.client.pipeline(transaction=False)
        for name in names:
            pipe.sadd(key, name)
        pipe.scard(key)
        patience = self.client.hget(f"{self._prefix}server", "patience")
        pipe.pexpire(key, int(patience or PATIENCE_MS))  # as long as the job may stay open
        *added, count, _ = pipe.execute()
        if count <= most:
            return True
        if fresh := [name for name, new in zip(names, added, strict=True) if new]:
            self.client.srem(key, *fresh)
        return False

    def close(self, job: str, pieces: int) -> None:
        """Say that no more pieces will come; all of them must be there."""
        self._accept("close", check_job_id(job), pieces)

    def submit(self, header: JobHeader, tasks: Sequence[TaskDraft], rejected: int = 0) -> Submitted:
        """Open, append and close in one."""
        arguments = [*encoding.header_arguments(header), rejected, *encoding.task_arguments(tasks)]
        job, created = self._accept("submit", *arguments)
        return Submitted(job, bool(created))

    def restore(self, header: JobHeader, created: datetime, generation: int) -> Submitted:
        """Open a job again under its own id, as of a generation; ``restore_tasks`` fills it."""
        submitted = self.open(header)
        if submitted.job == header.job:
            self._accept("restore", header.job, encoding.milliseconds(created), generation, "[]")
        return submitted

    def restore_tasks(
        self, job: str, created: datetime, generation: int, tasks: Sequence[Restored]
    ) -> int:
        """Put tasks back, at most ``MAX_ROWS`` a call; those that are there stay. Returns how many
        were not."""
        rows = encoding.to_json([encoding.restored(task) for task in tasks])
        return int(
            self._accept(
                "restore", check_job_id(job), encoding.milliseconds(created), generation, rows
            )
        )

    def restored(
        self,
        job: str,
        *,
        deadline: datetime | None,
        rejected: int,
        pieces: Sequence[int],
        closed: bool,
        ended: datetime | None,
    ) -> None:
        """Every task is back: the job stays open, is closed, or ended at a time."""
        ending = encoding.milliseconds(ended) if ended else "close" if closed else ""
        self._accept(
            "restored",
            check_job_id(job),
            encoding.milliseconds(deadline) if deadline else "",
            rejected,
            encoding.to_json(list(pieces)),
            ending,
        )
