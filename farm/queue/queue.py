"""The queue's operations: one method, one script, one round trip."""

import json
from collections.abc import Iterator, Sequence
from typing import Any

from farm.errors import InvalidInput
from farm.job import JobState, check_job_id
from farm.queue import encoding
from farm.queue.connection import MAX_BLOCK_SECONDS, explained
from farm.queue.constants import CLASSES, MAX_ROWS
from farm.queue.messages import (
    MAX_REASON,
    Event,
    Failure,
    Finished,
    ImageCounts,
    JobStatus,
    LaneBacklog,
    Removal,
    Rooms,
    Session,
    WorkerRoom,
)
from farm.queue.submissions import Submissions
from farm.queue.tallies import Tallies
from farm.queue.why import Why, explain_wait
from farm.queue.worker_sessions import WorkerSessions
from farm.spec import Lane

CHECKED_LANES = 64  # in a call, with few tenants
CHECKED_PLACES = 6400  # lanes times tenants, in a call


class Queue(Submissions, WorkerSessions):
    """A farm's queue.

    A call whose reply was lost may be sent again: it returns what it did the first time, and does
    nothing twice. Redis is the only clock.
    """

    def tick(self) -> None:
        """Do what is due: retries, deadlines, sessions without a heartbeat, jobs that are left open
        or past their retention."""
        self._run("tick")

    def cancel(self, job: str, tenant: str) -> JobState:
        """Stop a job at once; a job that has ended stays unchanged."""
        return encoding.JOB_STATES[self._run("cancel", check_job_id(job), tenant)]

    def pause(self, job: str, tenant: str) -> None:
        """Start no more of a job until it is resumed; what is running continues."""
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

    def remove(self, job: str, tenant: str, *, stored: bool = False) -> tuple[Removal, bool]:
        """Forget an ended job; its objects are then to be deleted.

        Args:
            job: called again, it is found among those that are to be deleted.
            tenant: whose it is.
            stored: the store knows it as the tenant's, so the queue need not.

        Returns:
            It, and whether no worker can still store something of it.
        """
        entry, left = self._accept("remove", check_job_id(job), tenant, int(stored))
        return Removal(entry, job, tenant), left <= 0

    def removals(self, after: int = 0) -> list[Removal]:
        """Some of the jobs whose objects can be deleted now, but for the first ``after``."""
        return [Removal(*row) for row in self._run("removals", after, MAX_ROWS)]

    @explained
    def removed(self, removal: Removal) -> None:
        """Nothing of it is left in the store."""
        self.client.zrem(f"{self._prefix}removals", removal.entry)

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
        """A tenant's jobs, newest first; those before one that may be removed by now."""
        found = self._run("jobs", tenant, min(limit, MAX_ROWS), before or "")
        return [encoding.status(job, header) for job, header in found]

    def all_jobs(self, tenant: str) -> Iterator[JobStatus]:
        """All jobs of a tenant, newest first."""
        before = None
        while True:
            page = self.jobs(tenant, MAX_ROWS, before)
            yield from page
            if len(page) < MAX_ROWS:
                return
            before = page[-1].id

    def finished(self, job: str, after: int = 0, limit: int = MAX_ROWS) -> list[Finished]:
        """Tasks with a receipt after a position, in the order they were done."""
        found = self._run("finished", check_job_id(job), after, min(limit, MAX_ROWS))
        return [
            Finished(position, *encoding.numbers(name), encoding.receipt(receipt, numerics))
            for position, (name, receipt, numerics) in enumerate(found, after + 1)
        ]

    def failures(self, job: str, after: int = 0, limit: int = MAX_ROWS) -> list[Failure]:
        """Tasks that ran out of attempts, after a position."""
        while True:
            after, *found = self._run("failures", check_job_id(job), after, min(limit, MAX_ROWS))
            if found or not after:
                return [
                    Failure(position, *encoding.numbers(name), pictures, reason)
                    for position, name, pictures, reason in found
                ]

    def totals(self, job: str) -> ImageCounts:
        """What became of a job's pictures, for any tenant."""
        return encoding.totals(self._run("totals", check_job_id(job)))

    def why(self, job: str, tenant: str, sessions: Sequence[Session] | None = None) -> Why:
        """What a job waits for, what goes first, and how long that may take.

        Args:
            job: its id.
            tenant: whose it is.
            sessions: as ``sessions`` has told them a moment ago; else they are asked for.
        """
        header, alone, *lanes = self._run("why", check_job_id(job), tenant)
        queues = [encoding.lane_queue(row) for row in lanes]
        workers = self.sessions() if sessions is None else sessions
        return explain_wait(encoding.status(job, header), alone, queues, workers)

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

    def rooms(self) -> Rooms:
        """What a planner needs of workers' sessions; these learn by it that somebody plans."""
        finalise, pairs, sessions = json.loads(self._run("rooms"))
        texts = dict(zip(pairs[::2], pairs[1::2], strict=True)) if pairs else {}
        served: dict[str, frozenset[str]] = {}
        found = []
        for session, numbers, room, held, command, told in sessions:
            if numbers not in served:
                named = filter(None, numbers.split(","))
                served[numbers] = frozenset(texts[number] for number in named)
            found.append(
                WorkerRoom(
                    session, served[numbers], room, held, command or None, encoding.told(told)
                )
            )
        return Rooms(finalise, found)

    def backlog(self) -> list[LaneBacklog]:
        """What is ready, by lane and class."""
        found = [
            LaneBacklog(Lane.parse(lane), CLASSES[number], tasks, pictures)
            for lane, number, tasks, pictures in self._run("backlog")
        ]
        return sorted(found, key=lambda ready: (ready.priority.rank, ready.lane))

    @explained
    def finalising(self) -> int:
        """How many tasks that finalise their job no session holds; the backlog leaves them out."""
        return int(self.client.llen(f"{self._prefix}finalise"))

    def tallies(self) -> Tallies:
        """What has happened since the queue began, for the farm's metrics."""
        return Tallies.of(self._run("tallies"))

    @explained
    def events(self, after: str, block_ms: int) -> list[Event]:
        """What happened after an event; waits two seconds at most."""
        block = max(1, min(block_ms, int(MAX_BLOCK_SECONDS * 1000)))
        found: Any = self.client.xread(
            {f"{self._prefix}events": after or "0"}, count=MAX_ROWS, block=block
        )
        streams = found.values() if isinstance(found, dict) else [rows for _, rows in found or ()]
        return [
            Event(entry, fields["job"], fields["kind"])
            for rows in streams
            for entry, fields in rows
        ]

    @explained
    def last_event(self) -> str:
        """The id after which to listen for what happens from now on."""
        found: Any = self.client.xrevrange(f"{self._prefix}events", count=1)
        return str(found[0][0]) if found else "0"

    def lead(self, scheduler: str, started_ms: int, ms: int) -> bool:
        """Whether this scheduler places workers for so long: the one that started last does.

        Args:
            scheduler: the caller's name, unique among schedulers.
            started_ms: when it started, by the server's clock.
            ms: how long the answer holds; then another one may, if this one says nothing.
        """
        return bool(self._run("lead", scheduler, started_ms, ms))

    @explained
    def now_ms(self) -> int:
        """The server's clock."""
        found: Any = self.client.time()
        seconds, microseconds = found
        return int(seconds) * 1000 + int(microseconds) // 1000

    @explained
    def cancelled(self) -> list[str]:
        """Some of the jobs of which the store does not say yet that they were cancelled."""
        found: Any = self.client.srandmember(f"{self._prefix}cancelled", MAX_ROWS)
        return list(found)

    @explained
    def cancellation_noted(self, job: str) -> None:
        """The store says that a job was cancelled."""
        self.client.srem(f"{self._prefix}cancelled", check_job_id(job))

    def set_weight(self, tenant: str, weight: float) -> None:
        """Set a tenant's share of its classes; without a weight it is 1."""
        if not 0.001 <= weight <= 1000:
            raise InvalidInput(f"{weight} is not from 0.001 to 1000", field="weight")
        self._run("set_weight", tenant, weight)

    @explained
    def tenants(self) -> dict[str, float]:
        """The weights of all tenants that ever had a job, by name."""
        texts: Any = self.client.hgetall(f"{self._prefix}tenant:texts")
        weights: Any = self.client.hgetall(f"{self._prefix}weights")
        named = {str(text): float(weights.get(number, 1)) for number, text in texts.items()}
        return dict(sorted(named.items()))

    @explained
    def keep(self, *, retention_days: float, open_hours: float) -> None:
        """Set how long ended jobs are known, and how long an open one waits for its next piece."""
        settings: Any = {
            "retention": int(retention_days * 86_400_000),
            "patience": int(open_hours * 3_600_000),
        }
        self.client.hset(f"{self._prefix}server", mapping=settings)

    @explained
    def retention_days(self) -> float | None:
        """How long ended jobs are known, as ``keep`` set it; None if nothing has."""
        kept: Any = self.client.hget(f"{self._prefix}server", "retention")
        return int(kept) / 86_400_000 if kept else None

    @explained
    def check(self, *, repair: bool = True) -> list[str]:
        """Recount every job and compare the indexes with it; a line for each finding.

        Redis does nothing else while it checks one job or ``CHECKED_LANES`` lanes, fewer if there
        are many tenants: some microseconds per task, job, and place of a tenant in a lane.
        """
        found = []
        for key in self.client.scan_iter(f"{self._prefix}job:*", count=1000):
            job = str(key).removeprefix(f"{self._prefix}job:")
            found += [f"{job}: {line}" for line in self._run("check_job", job, int(repair))]
        lanes: list[Any] = sorted(self.client.hkeys(f"{self._prefix}lane:texts"))
        tenants: Any = self.client.hlen(f"{self._prefix}tenant:texts")
        step = max(1, min(CHECKED_LANES, CHECKED_PLACES // max(tenants, 1)))
        for start in range(0, len(lanes), step):
            found += self._run("check_lanes", int(repair), *lanes[start : start + step])
        return found + list(self._run("check_sessions", int(repair)))
