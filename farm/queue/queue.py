"""The queue's operations: one method, one script, one round trip."""

import json
import re
import secrets
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from typing import Any, Literal

import redis
from redis.commands.core import Script
from redis.exceptions import RedisError

from farm.errors import InvalidInput
from farm.job import JobState, Lease, Priority, Receipt, TaskDraft, TaskState, check_job_id
from farm.queue import encoding
from farm.queue.connection import RewriteNeeded, explain
from farm.queue.constants import CLASSES, MAX_ROWS
from farm.queue.identity import Identity
from farm.queue.messages import (
    Event,
    Failure,
    Finished,
    Heartbeat,
    Images,
    JobHeader,
    JobStatus,
    LaneBacklog,
    Outcome,
    Progress,
    Restored,
    Session,
    Submitted,
    Verdict,
)
from farm.queue.scripts import read_scripts
from farm.queue.server import rewrite
from farm.queue.why import Why, explain_wait
from farm.spec import Lane

MAX_BLOCK_SECONDS = 2.0  # well below the socket's time limit
LANES_SECONDS = 86_400  # that the lanes of an open job are known after its last piece
FIRST_LEASE_MS = 30_000  # until a worker's first beat
CHECKED_LANES = 64  # in a call
MAX_REASON = 500  # characters

_FARM = re.compile(r"[a-z0-9][a-z0-9-]{0,39}")
_SESSION = re.compile(r"[0-9a-f]{32}")

FailKind = Literal["row", "crash", "infra", "release"]
EndReason = Literal["crash", "drain", "lost"]
Command = Literal["drain"]


def milliseconds(moment: datetime) -> int:
    return int(moment.timestamp() * 1000)


class Queue:
    """A farm's queue.

    A call whose reply was lost may be sent again: it returns what it did the first time, and does
    nothing twice. Redis is the only clock.

    Args:
        client: of ``connect``.
        farm: its name; several may share a server.
        scripts: by name; those of the package by default.
    """

    def __init__(
        self,
        client: "redis.Redis",
        *,
        farm: str = "farm",
        scripts: Mapping[str, str] | None = None,
    ) -> None:
        if not _FARM.fullmatch(farm):
            raise InvalidInput(
                f"{farm[:60]!r} is not a farm's name",
                field="FARM_NAME",
                hint="lower-case letters, digits and dashes, at most 40",
            )
        self.client = client
        self.farm = farm
        self._prefix = f"{{{farm}}}:"
        Identity(f"{self._prefix}server").guard(client)
        self._scripts: dict[str, Script] = {
            name: client.register_script(source)
            for name, source in (scripts or read_scripts()).items()
        }

    # Submission.

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

    def note_lanes(self, job: str, lanes: Collection[Lane], most: int) -> bool:
        """Note the lanes of an open job's piece; False, and nothing, where it would be too many."""
        key, names = f"{self._prefix}lanes-of:{job}", [str(lane) for lane in lanes]
        pipe = self.client.pipeline()
        for name in names:
            pipe.sadd(key, name)
        pipe.expire(key, LANES_SECONDS)
        pipe.scard(key)
        try:
            *added, _, count = pipe.execute()
            if count <= most:
                return True
            if fresh := [name for name, new in zip(names, added, strict=True) if new]:
                self.client.srem(key, *fresh)
        except RedisError as error:
            raise explain(error) from error
        return False

    def close(self, job: str, pieces: int) -> None:
        """Say that no more pieces will come; all of them must be there."""
        self._accept("close", check_job_id(job), pieces)

    def submit(self, header: JobHeader, tasks: Sequence[TaskDraft], rejected: int = 0) -> Submitted:
        """Open, append and close in one."""
        arguments = [*encoding.header_arguments(header), rejected, *encoding.task_arguments(tasks)]
        job, created = self._accept("submit", *arguments)
        return Submitted(job, bool(created))

    # Jobs that are put back from the store.

    def restore(self, header: JobHeader, created: datetime, generation: int) -> Submitted:
        """Open a job again under its own id, as of a generation; ``restore_tasks`` fills it."""
        submitted = self.open(header)
        if submitted.job == header.job:
            self._accept("restore", header.job, milliseconds(created), generation, "[]")
        return submitted

    def restore_tasks(
        self, job: str, created: datetime, generation: int, tasks: Sequence[Restored]
    ) -> int:
        """Put tasks back, at most ``MAX_ROWS`` a call; those that are there stay. Returns how many
        were not."""
        rows = encoding.to_json([encoding.restored(task) for task in tasks])
        return int(
            self._accept("restore", check_job_id(job), milliseconds(created), generation, rows)
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
        self._accept(
            "restored",
            check_job_id(job),
            milliseconds(deadline) if deadline else "",
            rejected,
            encoding.to_json(list(pieces)),
            ending,
        )

    # Workers.

    def register(
        self, session: str, worker: str, checkpoints: Sequence[str], info: Mapping[str, Any]
    ) -> None:
        """Start a session: 128 random bits, chosen by the worker, that own its leases."""
        if not _SESSION.fullmatch(session):
            raise InvalidInput("a session is 32 hexadecimal digits", field="session")
        self._run("register", session, worker, encoding.to_json(info), FIRST_LEASE_MS, *checkpoints)

    def lease(
        self,
        session: str,
        lanes: Sequence[Lane] | None,
        room: int,
        ms: int,
        limit: int = 32,
        lowest: Priority = Priority.BULK,
    ) -> list[Lease]:
        """Grant tasks to a session; they also go to its inbox.

        Args:
            session: who gets them; the caller may be its worker or the scheduler.
            lanes: to take from; None for all lanes of the session's checkpoints.
            room: pictures that the worker can take; the last task may exceed it.
            ms: how long the lease lasts after the worker's last heartbeat.
            limit: tasks.
            lowest: the class below which nothing is granted.
        """
        which = ["any"] if lanes is None else ["only", *map(str, lanes)]
        reply = self._run(
            "lease",
            session,
            secrets.token_hex(8),
            room,
            min(limit, MAX_ROWS),
            ms,
            lowest.rank,
            *which,
        )
        granted = json.loads(reply)
        if granted and isinstance(granted[0], str):  # the call was sent before: these are keys
            return self._leases(session, granted)
        return [encoding.lease(row) for row in granted]

    def inbox(self, session: str, seconds: float) -> list[Lease]:
        """What was granted since the last call; waits for it, two seconds at most.

        A grant whose delivery was lost is still held: ``held`` returns it.
        """
        seconds = max(0.01, min(seconds, MAX_BLOCK_SECONDS))
        try:
            popped: Any = self.client.blmpop(
                seconds, 1, f"{self._prefix}inbox:{session}", direction="LEFT", count=MAX_ROWS
            )
        except RedisError as error:
            raise explain(error) from error
        return self._leases(session, popped[1]) if popped else []

    def held(self, session: str) -> list[Lease]:
        """Everything that a session holds."""
        return self._leases(session, [])

    def heartbeat(
        self,
        session: str,
        room: int,
        progress: Mapping[str, Progress | tuple[int, int]],
        stats: Mapping[str, Any],
        ms: int,
    ) -> Heartbeat:
        """Extend all that the session holds to ``ms`` from now, and learn what has changed.

        Args:
            session: the caller's.
            room: pictures that the worker could take now.
            progress: lease key → how far the task is, for the tasks being rendered.
            stats: anything that people who watch the farm may want to know.
            ms: how long the leases last from now on.

        Raises:
            LeaseLost: the session has ended; drop everything and register a new one.
        """
        rows = [value for key, at in progress.items() for value in encoding.progress(key, at)]
        command, held, cancelled = self._run(
            "heartbeat", session, ms, room, encoding.to_json(stats), *rows
        )
        return Heartbeat(set(held), set(cancelled), command or None)

    def complete(self, session: str, lease: Lease, receipt: Receipt) -> Outcome:
        """Record that a task is done, if the session still holds it."""
        return self.complete_all(session, [(lease, receipt)])[0]

    def complete_all(self, session: str, done: Sequence[tuple[Lease, Receipt]]) -> list[Outcome]:
        """Record that tasks are done, each if the session still holds it; an outcome for each.

        Raises:
            InvalidInput: a receipt does not account for its task's pictures; nothing is recorded.
        """
        if len(done) > MAX_ROWS:
            raise InvalidInput(f"{len(done)} receipts; at most {MAX_ROWS} in one call")
        rows = [encoding.completion(lease, receipt) for lease, receipt in done]
        outcomes = json.loads(self._run("complete", session, encoding.to_json(rows)))
        return [
            Outcome(Verdict(verdict), encoding.receipt(winner, numerics) if winner else None)
            for verdict, winner, numerics in outcomes
        ]

    def fail(self, session: str, lease: Lease, kind: FailKind, reason: str) -> TaskState:
        """Give up a task that is not done.

        Args:
            session: the caller's; if it does not hold the task, nothing changes.
            lease: the task.
            kind: ``row`` is final; ``crash`` counts if the task was leased alone, against the row
                that a heartbeat named, otherwise the task will run alone; ``infra`` blames the
                surroundings; ``release`` returns the task at no cost.
            reason: for people.
        """
        state = self._run(
            "fail",
            session,
            lease.job,
            encoding.task_name(lease),
            lease.attempt,
            kind,
            reason[:MAX_REASON],
        )
        return encoding.TASK_STATES[state]

    def end(self, session: str, why: EndReason) -> int:
        """End a session; what it held goes back. Returns how many tasks that were."""
        return int(self._run("end_session", session, why))

    def set_command(self, session: str, command: Command | None) -> bool:
        """Tell a worker something with its next heartbeats; until None it gets no work.

        Returns whether the session exists.
        """
        return bool(self._run("set_command", session, command or ""))

    def tick(self) -> None:
        """Do what is due: retries, deadlines, sessions without a heartbeat, jobs that are left open
        or past their retention."""
        self._run("tick")

    # Users.

    def cancel(self, job: str, tenant: str) -> JobState:
        """Stop a job at once; a job that has ended stays unchanged."""
        return encoding.JOB_STATES[self._run("cancel", check_job_id(job), tenant)]

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
            reason: retry only tasks that failed for it: ``row``, the pictures themselves failed;
                ``crash``, they crashed their worker; ``infra``, the task was lost too often; or a
                part of the reason that ``failures`` returns. Errors of single pictures are in the
                manifest, not here: their task counts as ``row`` and all its failed pictures run.
        """
        return int(self._accept("retry", check_job_id(job), tenant, (reason or "")[:MAX_REASON]))

    def invalidate(self, job: str, tenant: str, task: Finished, left: int) -> int:
        """Count pictures of a done task as failed because their files are gone: all but ``left``.
        ``retry`` then renders them again. Returns by how much the number of done pictures falls.

        Args:
            task: must be the newest of its generations that is done.
            left: negative if files of earlier generations are gone as well.
        """
        name = encoding.task_name(task)
        return int(self._run("invalidate", check_job_id(job), tenant, name, left))

    def status(self, job: str, tenant: str) -> JobStatus:
        return encoding.status(job, self._run("status", check_job_id(job), tenant))

    def jobs(self, tenant: str, limit: int = 50, before: str | None = None) -> list[JobStatus]:
        """A tenant's jobs, newest first."""
        found = self._run("jobs", tenant, min(limit, MAX_ROWS), before or "")
        return [encoding.status(job, header) for job, header in found]

    def finished(self, job: str, after: int = 0, limit: int = MAX_ROWS) -> list[Finished]:
        """Tasks with a receipt after a position, in the order they were done."""
        found = self._run("finished", check_job_id(job), after, min(limit, MAX_ROWS))
        return [
            Finished(position, *encoding.numbers(name), encoding.receipt(receipt, numerics))
            for position, (name, receipt, numerics) in enumerate(found, after + 1)
        ]

    def totals(self, job: str) -> Images:
        """What became of a job's pictures, whoever's it is."""
        return encoding.totals(self._run("totals", check_job_id(job)))

    def failures(self, job: str, after: int = 0, limit: int = MAX_ROWS) -> list[Failure]:
        """Tasks that ran out of attempts, after a position."""
        found = self._run("failures", check_job_id(job), after, min(limit, MAX_ROWS))
        return [
            Failure(position, *encoding.numbers(name), pictures, reason)
            for position, name, pictures, reason in found
        ]

    def why(self, job: str, tenant: str) -> Why:
        """What a job waits for, what goes first, and how long that may take."""
        header, alone, *lanes = self._run("why", check_job_id(job), tenant)
        queues = [encoding.lane_queue(row) for row in lanes]
        return explain_wait(encoding.status(job, header), alone, queues, self.sessions())

    # What is going on.

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

    def backlog(self) -> list[LaneBacklog]:
        """What is ready, by lane and class."""
        found = [
            LaneBacklog(Lane.parse(lane), CLASSES[number], tasks, pictures)
            for lane, number, tasks, pictures in self._run("backlog")
        ]
        return sorted(found, key=lambda ready: (ready.priority.rank, ready.lane))

    def events(self, after: str, block_ms: int) -> list[Event]:
        """What happened after an event; waits two seconds at most."""
        block = max(1, min(block_ms, int(MAX_BLOCK_SECONDS * 1000)))
        try:
            found: Any = self.client.xread(
                {f"{self._prefix}events": after or "0"}, count=MAX_ROWS, block=block
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
        """The id after which to listen for what happens from now on."""
        try:
            found: Any = self.client.xrevrange(f"{self._prefix}events", count=1)
        except RedisError as error:
            raise explain(error) from error
        return str(found[0][0]) if found else "0"

    def keep(self, *, retention_days: float, open_hours: float) -> None:
        """Set how long ended jobs are known, and how long an open one waits for its next piece."""
        settings: Any = {
            "retention": int(retention_days * 86_400_000),
            "patience": int(open_hours * 3_600_000),
        }
        try:
            self.client.hset(f"{self._prefix}server", mapping=settings)
        except RedisError as error:
            raise explain(error) from error

    def set_weight(self, tenant: str, weight: float) -> None:
        """Set a tenant's share of its classes; without a weight it is 1."""
        if not 0.001 <= weight <= 1000:
            raise InvalidInput(f"{weight} is not from 0.001 to 1000", field="weight")
        self._run("set_weight", tenant, weight)

    def check(self, *, repair: bool = True) -> list[str]:
        """Recount every job and compare the indexes with it; a line for each finding.

        Redis does nothing else while it checks one job or ``CHECKED_LANES`` lanes: some
        microseconds per task and job.
        """
        found = []
        for key in self.client.scan_iter(f"{self._prefix}job:*", count=1000):
            job = str(key).removeprefix(f"{self._prefix}job:")
            found += [f"{job}: {line}" for line in self._run("check_job", job, int(repair))]
        lanes: list[Any] = sorted(self.client.hkeys(f"{self._prefix}lane:texts"))
        for start in range(0, len(lanes), CHECKED_LANES):
            some = lanes[start : start + CHECKED_LANES]
            found += self._run("check_lanes", int(repair), *some)
        return found + list(self._run("check_sessions", int(repair)))

    def _leases(self, session: str, keys: Sequence[str]) -> list[Lease]:
        return [encoding.lease(row) for row in json.loads(self._run("held", session, *keys))]

    def _accept(self, name: str, *arguments: Any) -> Any:
        """Run a script that takes new work; a restarted server rewrites its file first."""
        try:
            return self._run(name, *arguments)
        except RewriteNeeded:
            self._run("mark_aof_rewritten", rewrite(self.client))
            return self._run(name, *arguments)

    def _run(self, name: str, *arguments: Any) -> Any:
        try:
            return self._scripts[name](keys=[self._prefix], args=arguments)
        except RedisError as error:
            raise explain(error) from error
