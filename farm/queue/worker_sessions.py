"""A worker's sessions and what they do with tasks: lease, heartbeat, complete, fail."""

import json
import re
import secrets
from collections.abc import Mapping, Sequence
from typing import Any

from farm.errors import InvalidInput
from farm.job import Lease, Priority, Receipt, TaskState
from farm.queue import encoding
from farm.queue.connection import MAX_BLOCK_SECONDS, explained
from farm.queue.constants import MAX_ROWS
from farm.queue.messages import (
    MAX_REASON,
    Command,
    EndReason,
    FailKind,
    Heartbeat,
    Outcome,
    Progress,
)
from farm.queue.script_runner import ScriptRunner
from farm.spec import Lane

FIRST_LEASE_MS = 30_000  # until a worker's first heartbeat

_SESSION = re.compile(r"[0-9a-f]{32}")


class WorkerSessions(ScriptRunner):
    """A session is one life of one worker; it owns the leases that it is granted."""

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

    @explained
    def inbox(self, session: str, seconds: float) -> list[Lease]:
        """What was granted since the last call; waits for it, two seconds at most.

        A grant whose delivery was lost is still held: ``held`` returns it.
        """
        seconds = max(0.01, min(seconds, MAX_BLOCK_SECONDS))
        popped: Any = self.client.blmpop(
            seconds, 1, f"{self._prefix}inbox:{session}", direction="LEFT", count=MAX_ROWS
        )
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
        arguments = encoding.heartbeat_arguments(session, room, progress, stats, ms)
        return encoding.heartbeat(self._run("heartbeat", *arguments))

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
        return encoding.outcomes(self._run("complete", session, encoding.to_json(rows)))

    def fail(self, session: str, lease: Lease, kind: FailKind, reason: str) -> TaskState:
        """Give up a task that is not done.

        Args:
            session: the caller's; if it does not hold the task, nothing changes.
            lease: the task.
            kind: ``row`` is final; ``crash`` counts if the task was leased alone, against the row
                that a heartbeat named, otherwise the task will run alone; ``infra`` blames the
                machines; ``release`` returns the task at no cost.
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

    def set_command(
        self, session: str, command: Command | str | None, *, instead_of: str | None = None
    ) -> bool:
        """Tell a worker something with its next heartbeats; until None it gets no work.

        Args:
            session: the worker's.
            command: what to do.
            instead_of: the only command that this one may replace, empty for none; by default any.

        Returns whether the session exists and has this command now.
        """
        only = [] if instead_of is None else [instead_of]
        return bool(self._run("set_command", session, str(command or ""), *only))

    def _leases(self, session: str, keys: Sequence[str]) -> list[Lease]:
        return [encoding.lease(row) for row in json.loads(self._run("held", session, *keys))]
