"""The queue's operations: one method, one script, one round trip."""

import json
import re
import secrets
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Literal

import redis
from redis.commands.core import Script
from redis.exceptions import RedisError

from farm.errors import InvalidInput
from farm.job import JobState, Lease, Priority, Receipt, TaskDraft, TaskState, check_job_id
from farm.queue import wire
from farm.queue.connection import Unsettled, explain
from farm.queue.identity import Identity
from farm.queue.records import (
    Beat,
    Event,
    Failure,
    Finished,
    JobHeader,
    JobStatus,
    LaneWork,
    Opened,
    Outcome,
    Progress,
    Restored,
    Session,
    Verdict,
)
from farm.queue.scripts import read_scripts
from farm.queue.server import rewrite
from farm.queue.why import Why, reckon
from farm.spec import Lane

MAX_BLOCK_SECONDS = 2.0  # well below the socket's time limit
FIRST_LEASE_MS = 30_000  # until a worker's first beat
RETENTION_DAYS = 30
MAX_REASON = 500  # characters

_FARM = re.compile(r"[a-z0-9][a-z0-9-]{0,39}")
_SESSION = re.compile(r"[0-9a-f]{32}")


def milliseconds(moment: datetime) -> int:
    return int(moment.timestamp() * 1000)


FailKind = Literal["row", "crash", "infra", "release"]
EndReason = Literal["crash", "drain", "lost"]


class Queue:
    """A farm's queue.

    A call whose reply was lost may be sent again: it then answers what it did, and does nothing
    twice. Redis is the only clock.
    """

    def __init__(
        self,
        client: "redis.Redis",
        *,
        farm: str = "farm",
        retention_days: float = RETENTION_DAYS,
        scripts: Mapping[str, str] | None = None,
    ) -> None:
        if not _FARM.fullmatch(farm):
            raise InvalidInput(
                f"{farm[:60]!r} is no name for a farm",
                field="FARM_NAME",
                hint="small letters, digits and dashes, at most 40",
            )
        self.client = client
        self.farm = farm
        self._prefix = f"{{{farm}}}:"
        Identity(f"{self._prefix}server").guard(client)
        self._retention_ms = int(retention_days * 86_400_000)
        self._scripts: dict[str, Script] = {
            name: client.register_script(source)
            for name, source in (scripts or read_scripts()).items()
        }

    # A job comes in.

    def open(self, header: JobHeader) -> Opened:
        """Start a job whose tasks come by pieces; the same submission again finds the same job."""
        job, created = self._take_in("open", *wire.header_arguments(header))
        return Opened(job, bool(created))

    def append(
        self, job: str, piece: int, sha256: str, tasks: Sequence[TaskDraft], rejected: int = 0
    ) -> bool:
        """Add a piece of an open job; False if it was there already. Its tasks may run at once."""
        return bool(
            self._take_in(
                "append", check_job_id(job), piece, sha256, rejected, *wire.task_arguments(tasks)
            )
        )

    def close(self, job: str, pieces: int) -> None:
        """No more pieces will come; all of them must be there."""
        self._take_in("close", check_job_id(job), pieces)

    def submit(self, header: JobHeader, tasks: Sequence[TaskDraft], rejected: int = 0) -> Opened:
        """Open, append and close in one."""
        arguments = [*wire.header_arguments(header), rejected, *wire.task_arguments(tasks)]
        job, created = self._take_in("submit", *arguments)
        return Opened(job, bool(created))

    # A job is put back from the store.

    def restore(self, header: JobHeader, created: datetime, generation: int) -> Opened:
        """Open a job again under its own id, as of a generation; ``restore_tasks`` fills it."""
        opened = self.open(header)
        if opened.job == header.job:
            self._take_in("restore", header.job, milliseconds(created), generation, "[]")
        return opened

    def restore_tasks(
        self, job: str, created: datetime, generation: int, tasks: Sequence[Restored]
    ) -> int:
        """Put tasks back, at most ``wire.MAX_ROWS`` a call; those that are there stay. Returns how
        many were not."""
        rows = wire.to_json([wire.restored(task) for task in tasks])
        return int(
            self._take_in("restore", check_job_id(job), milliseconds(created), generation, rows)
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
        ending = milliseconds(ended) if ended else "close" if closed else ""
        self._take_in(
            "restored",
            check_job_id(job),
            milliseconds(deadline) if deadline else "",
            rejected,
            wire.to_json(list(pieces)),
            ending,
        )

    # A worker's life.

    def register(
        self, session: str, worker: str, checkpoints: Sequence[str], info: Mapping[str, Any]
    ) -> None:
        """Start a session: a token of 128 random bits, made by the worker, that owns its leases."""
        if not _SESSION.fullmatch(session):
            raise InvalidInput("a session is 32 hexadecimal digits", field="session")
        self._run("register", session, worker, wire.to_json(info), FIRST_LEASE_MS, *checkpoints)

    def lease(
        self,
        session: str,
        lanes: Sequence[Lane] | None,
        room: int,
        ms: int,
        limit: int = 32,
        lowest: Priority = Priority.BULK,
    ) -> list[Lease]:
        """Grant tasks to a session; they are put into its inbox too.

        Args:
            session: whose room it is; the caller may be its worker or the scheduler.
            lanes: the ones to take from; None for all of the session's checkpoints.
            room: pictures that the worker can take up; the last task may go beyond it.
            ms: how long the lease lasts after the worker's last sign of life.
            limit: tasks.
            lowest: the class below which nothing is granted.
        """
        which = ["any"] if lanes is None else ["only", *map(str, lanes)]
        reply = self._run(
            "lease",
            session,
            secrets.token_hex(8),
            room,
            min(limit, wire.MAX_ROWS),
            ms,
            wire.CLASSES.index(lowest),
            *which,
        )
        granted = json.loads(reply)
        if granted and isinstance(granted[0], str):  # the answer to a call that was sent again
            return self._leases(session, granted)
        return [wire.lease(row) for row in granted]

    def inbox(self, session: str, seconds: float) -> list[Lease]:
        """What was granted since the last call; waits for it, two seconds at most.

        A grant whose delivery was lost stays held: ``held`` has it.
        """
        seconds = max(0.01, min(seconds, MAX_BLOCK_SECONDS))
        try:
            popped: Any = self.client.blmpop(
                seconds, 1, f"{self._prefix}inbox:{session}", direction="LEFT", count=wire.MAX_ROWS
            )
        except RedisError as error:
            raise explain(error) from error
        return self._leases(session, popped[1]) if popped else []

    def held(self, session: str) -> list[Lease]:
        """Everything that a session holds."""
        return self._leases(session, [])

    def beat(
        self,
        session: str,
        room: int,
        progress: Mapping[str, Progress | tuple[int, int]],
        stats: Mapping[str, Any],
        ms: int,
    ) -> Beat:
        """Show life: extend all the session holds by ``ms`` and hear what has changed.

        Args:
            session: the caller's.
            room: pictures that the worker could take up now.
            progress: lease key → how far it is, of the tasks at work.
            stats: anything for the people who look at the farm.
            ms: how long the leases last from now on.

        Raises:
            LeaseLost: the session has ended; register anew and drop everything.
        """
        rows = [value for key, at in progress.items() for value in wire.progress(key, at)]
        command, held, cancelled = self._run("beat", session, ms, room, wire.to_json(stats), *rows)
        return Beat(set(held), set(cancelled), command or None)

    def complete(self, session: str, lease: Lease, receipt: Receipt) -> Outcome:
        """Record that a task is done, if the session still holds it."""
        return self.complete_all(session, [(lease, receipt)])[0]

    def complete_all(self, session: str, done: Sequence[tuple[Lease, Receipt]]) -> list[Outcome]:
        """Record that tasks are done, each if the session still holds it; an outcome for each.

        Raises:
            InvalidInput: a receipt does not tell of its task's pictures; nothing is recorded.
        """
        if len(done) > wire.MAX_ROWS:
            raise InvalidInput(f"{len(done)} receipts; at most {wire.MAX_ROWS} in one call")
        rows = [wire.completion(lease, receipt) for lease, receipt in done]
        outcomes = json.loads(self._run("complete", session, wire.to_json(rows)))
        return [
            Outcome(Verdict(verdict), wire.receipt(winner, numerics) if winner else None)
            for verdict, winner, numerics in outcomes
        ]

    def fail(self, session: str, lease: Lease, kind: FailKind, reason: str) -> TaskState:
        """Let go of a task that is not done.

        Args:
            session: the caller's; one that does not hold the task changes nothing.
            lease: the task.
            kind: ``row`` is final; ``crash`` counts if the task was leased alone, against the row
                that a beat told of, else it will run alone; ``infra`` blames the surroundings;
                ``release`` gives it back for free.
            reason: for people.
        """
        state = self._run(
            "fail",
            session,
            lease.job,
            wire.task_name(lease),
            lease.attempt,
            kind,
            reason[:MAX_REASON],
        )
        return wire.TASK_STATES[state]

    def end(self, session: str, why: EndReason) -> int:
        """End a session; what it held goes back. Returns how many tasks that were."""
        return int(self._run("end", session, why))

    def command(self, session: str, command: str | None) -> bool:
        """Tell a worker something in its next beats; it gets no work until that is taken back."""
        return bool(self._run("command", session, command or ""))

    def tick(self) -> None:
        """Do what time brings: retries, deadlines, sessions that fell silent, old jobs."""
        self._run("tick", self._retention_ms)

    # A user's view.

    def cancel(self, job: str, tenant: str) -> JobState:
        """Stop a job at once; one that has ended stays as it is."""
        return wire.JOB_STATES[self._run("cancel", check_job_id(job), tenant)]

    def pause(self, job: str, tenant: str) -> None:
        """Start nothing more of a job until it is resumed; what runs goes on."""
        self._run("pause", check_job_id(job), tenant, 1)

    def resume(self, job: str, tenant: str) -> None:
        self._run("pause", check_job_id(job), tenant, 0)

    def retry(self, job: str, tenant: str, reason: str | None = None) -> int:
        """Queue the failed pictures' tasks of an ended job again; returns the new generation.

        Args:
            job: one that is done or has failed.
            tenant: whose it is.
            reason: only the tasks that failed for it: ``row``, pictures failed of themselves;
                ``crash``, they crashed their worker; ``infra``, it was lost too often; or a part of
                what ``failures`` tells. The error of a single picture is in the manifest and not
                known here: its task has failed pictures by ``row``, and all of them run again.
        """
        return int(self._take_in("retry", check_job_id(job), tenant, (reason or "")[:MAX_REASON]))

    def spoil(self, job: str, tenant: str, task: Finished, left: int) -> int:
        """Count pictures of a done task as failed, because their files are gone: all but ``left``.
        ``retry`` then makes them again. Returns how many fewer count as done.

        Args:
            task: the newest of its generations that is done, else Conflict.
            left: below zero where files of earlier generations are gone as well.
        """
        name = wire.task_name(task)
        return int(self._run("spoil", check_job_id(job), tenant, name, left))

    def status(self, job: str, tenant: str) -> JobStatus:
        return wire.status(job, self._run("status", check_job_id(job), tenant))

    def jobs(self, tenant: str, limit: int = 50, before: str | None = None) -> list[JobStatus]:
        """A tenant's jobs, newest first."""
        found = self._run("jobs", tenant, min(limit, wire.MAX_ROWS), before or "")
        return [wire.status(job, header) for job, header in found]

    def finished(self, job: str, after: int = 0, limit: int = wire.MAX_ROWS) -> list[Finished]:
        """Tasks with a receipt, in the order they were done, from behind a position."""
        found = self._run("finished", check_job_id(job), after, min(limit, wire.MAX_ROWS))
        return [
            Finished(position, *wire.numbers(name), wire.receipt(receipt, numerics))
            for position, (name, receipt, numerics) in enumerate(found, after + 1)
        ]

    def failures(self, job: str, after: int = 0, limit: int = wire.MAX_ROWS) -> list[Failure]:
        """Tasks that ran out of attempts, from behind a position."""
        found = self._run("failures", check_job_id(job), after, min(limit, wire.MAX_ROWS))
        return [
            Failure(position, *wire.numbers(name), pictures, reason)
            for position, name, pictures, reason in found
        ]

    def why(self, job: str, tenant: str) -> Why:
        """What a job waits for, what goes before it, and how long that may take."""
        header, alone, *lanes = self._run("why", check_job_id(job), tenant)
        queues = [wire.lane_queue(row) for row in lanes]
        return reckon(wire.status(job, header), alone, queues, self.sessions())

    # The planner's view, and everybody's.

    def sessions(self) -> list[Session]:
        return [
            Session(
                session,
                worker,
                tuple(checkpoints),
                room,
                held,
                int(seen),
                json.loads(info),
                json.loads(stats),
                command or None,
            )
            for session, worker, checkpoints, room, held, seen, info, stats, command in self._run(
                "sessions"
            )
        ]

    def work(self) -> list[LaneWork]:
        """What is ready, by lane and class."""
        found = [
            LaneWork(Lane.parse(lane), wire.CLASSES[number], tasks, pictures)
            for lane, number, tasks, pictures in self._run("work")
        ]
        return sorted(found, key=lambda work: (wire.CLASSES.index(work.priority), work.lane))

    def events(self, after: str, block_ms: int) -> list[Event]:
        """What happened after an event; waits for it, two seconds at most."""
        block = max(1, min(block_ms, int(MAX_BLOCK_SECONDS * 1000)))
        try:
            found: Any = self.client.xread(
                {f"{self._prefix}events": after or "0"}, count=wire.MAX_ROWS, block=block
            )
        except RedisError as error:
            raise explain(error) from error
        streams = found.values() if isinstance(found, dict) else [rows for _, rows in found or ()]
        return [
            Event(entry, fields["job"], fields["kind"])
            for rows in streams
            for entry, fields in rows
        ]

    def last_event(self) -> str:
        """Where to start listening for what happens from now on."""
        try:
            found: Any = self.client.xrevrange(f"{self._prefix}events", count=1)
        except RedisError as error:
            raise explain(error) from error
        return str(found[0][0]) if found else "0"

    def weigh(self, tenant: str, weight: float) -> None:
        """Give a tenant a larger or smaller share; everybody starts with 1."""
        if not 0.001 <= weight <= 1000:
            raise InvalidInput(f"{weight} is not from 0.001 to 1000", field="weight")
        self._run("weigh", tenant, weight)

    def fsck(self, *, repair: bool = True) -> list[str]:
        """Recount everything; a line for each thing that was not as it should be.

        Redis does nothing else while it looks at one job, some microseconds a task.
        """
        found = []
        for key in self.client.scan_iter(f"{self._prefix}job:*", count=1000):
            job = str(key).removeprefix(f"{self._prefix}job:")
            found += [f"{job}: {line}" for line in self._run("fsck", job, int(repair))]
        return found + list(self._run("fsck_index", int(repair)))

    def _leases(self, session: str, keys: Sequence[str]) -> list[Lease]:
        return [wire.lease(row) for row in json.loads(self._run("held", session, *keys))]

    def _take_in(self, name: str, *arguments: Any) -> Any:
        """Run a script that brings work in; a server that started anew is made safe first."""
        try:
            return self._run(name, *arguments)
        except Unsettled:
            self._run("settled", rewrite(self.client))
            return self._run(name, *arguments)

    def _run(self, name: str, *arguments: Any) -> Any:
        try:
            return self._scripts[name](keys=[self._prefix], args=arguments)
        except RedisError as error:
            raise explain(error) from error
