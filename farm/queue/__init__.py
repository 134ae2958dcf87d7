"""The queue: every operation is one Lua script on Valkey or Redis, one transition each."""

from farm.queue.connection import connect
from farm.queue.queue import Queue
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
    Session,
    Verdict,
)
from farm.queue.server import ServerFacts, check_server

__all__ = [
    "Beat",
    "Event",
    "Failure",
    "Finished",
    "JobHeader",
    "JobStatus",
    "LaneWork",
    "Opened",
    "Outcome",
    "Queue",
    "ServerFacts",
    "Session",
    "Verdict",
    "check_server",
    "connect",
]
