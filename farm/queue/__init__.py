"""The queue: every operation is one Lua script on Valkey or Redis, one transition each."""

from farm.queue.connection import connect
from farm.queue.queue import MAX_REASON, Queue
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
from farm.queue.server import ServerFacts, check_server
from farm.queue.why import LaneQueue, WaitsFor, Why

__all__ = [
    "MAX_REASON",
    "Beat",
    "Event",
    "Failure",
    "Finished",
    "JobHeader",
    "JobStatus",
    "LaneQueue",
    "LaneWork",
    "Opened",
    "Outcome",
    "Progress",
    "Queue",
    "Restored",
    "ServerFacts",
    "Session",
    "Verdict",
    "WaitsFor",
    "Why",
    "check_server",
    "connect",
]
