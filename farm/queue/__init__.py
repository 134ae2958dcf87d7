"""The queue: every operation is one Lua script on Valkey or Redis, one transition each."""

from farm.queue.connection import connect
from farm.queue.constants import MAX_ROWS
from farm.queue.messages import (
    MAX_REASON,
    Command,
    Event,
    Failure,
    Finished,
    Heartbeat,
    ImageCounts,
    JobHeader,
    JobStatus,
    LaneBacklog,
    Outcome,
    Progress,
    Removal,
    Restored,
    Rooms,
    Session,
    Submitted,
    Told,
    Verdict,
    WorkerRoom,
)
from farm.queue.queue import Queue
from farm.queue.server import ServerFacts, check_server
from farm.queue.tallies import Tallies
from farm.queue.why import LaneQueue, WaitsFor, Why

__all__ = [
    "MAX_REASON",
    "MAX_ROWS",
    "Command",
    "Event",
    "Failure",
    "Finished",
    "Heartbeat",
    "ImageCounts",
    "JobHeader",
    "JobStatus",
    "LaneBacklog",
    "LaneQueue",
    "Outcome",
    "Progress",
    "Queue",
    "Removal",
    "Restored",
    "Rooms",
    "ServerFacts",
    "Session",
    "Submitted",
    "Tallies",
    "Told",
    "Verdict",
    "WaitsFor",
    "Why",
    "WorkerRoom",
    "check_server",
    "connect",
]
