"""Which lanes go to which worker: pure, so that a test is a list in and a list out."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from farm.job import Priority
from farm.spec import Lane


class Work(NamedTuple):
    """Queued tasks of one lane and class."""

    lane: Lane
    priority: Priority
    pictures: int


class Room(NamedTuple):
    """What one worker's session can take."""

    session: str
    checkpoints: frozenset[str]
    rows: int
    urgent_rows: int = 0  # of urgent tasks alone: kept free for them, however full it is
    lanes: frozenset[Lane] = frozenset()  # of the tasks it holds
    held: int = 0  # tasks
    unbegun: int = 0  # of these, nothing of which has been rendered


class Grant(NamedTuple):
    """An order to lease tasks of these lanes, best first, up to so many rows."""

    session: str
    lanes: tuple[Lane, ...]
    rows: int
    lowest: Priority = Priority.BULK  # nothing below this class


def plan(work: Iterable[Work], rooms: Sequence[Room]) -> list[Grant]:
    """Match queued lanes with workers that have room.

    Urgent lanes come first and go to the emptiest workers; where every worker is full they go into
    the room that is kept for them, so that a person at a screen does not wait for a dataset. Among
    the others a worker prefers lanes whose grid it already runs, since rows of one token grid share
    its forward passes; a lane that no busy worker prefers still goes to the one with most room, so
    affinity starves no lane.
    """
    waiting: dict[Lane, int] = {}
    urgent: dict[Lane, int] = {}
    rank: dict[Lane, int] = {}
    for item in work:
        waiting[item.lane] = waiting.get(item.lane, 0) + item.pictures
        rank[item.lane] = min(rank.get(item.lane, len(Priority)), item.priority.rank)
        if item.priority is Priority.URGENT:
            urgent[item.lane] = urgent.get(item.lane, 0) + item.pictures
    grants = []
    ordered = sorted(rooms, key=lambda room: (-room.rows, room.session))
    for room in ordered:
        grids = {_grid(lane) for lane in room.lanes}
        fitting = _fitting(waiting, room)
        fitting.sort(key=lambda lane: (rank[lane], _grid(lane) not in grids, -waiting[lane], lane))
        if chosen := _take(fitting, room.rows, waiting, urgent):
            grants.append(Grant(room.session, chosen, room.rows))
    for room in ordered:
        if chosen := _take(sorted(_fitting(urgent, room)), room.urgent_rows, urgent):
            grants.append(Grant(room.session, chosen, room.urgent_rows, Priority.URGENT))
    return grants


def even_out(rooms: Iterable[Room]) -> dict[str, int]:
    """How many tasks that they have not begun sessions should hand back, so that idle ones get
    some: half of what the richest has, for each idle session that can take whatever it may hold.

    For when the queue has nothing for the idle ones.
    """
    rooms = list(rooms)
    # One task stays: where it takes long to read, it would go to and fro between idle workers.
    left = {room.session: min(room.unbegun, max(room.held - 1, 0)) for room in rooms}
    back: dict[str, int] = {}
    for idle in rooms:
        if idle.held or idle.rows <= 0:
            continue
        givers = [
            room for room in rooms if left[room.session] and room.checkpoints <= idle.checkpoints
        ]
        if givers:
            giver = max(givers, key=lambda room: (left[room.session], room.session)).session
            tasks = (left[giver] + 1) // 2
            left[giver] -= tasks
            back[giver] = back.get(giver, 0) + tasks
    return back


def _fitting(waiting: dict[Lane, int], room: Room) -> list[Lane]:
    return [
        lane for lane, left in waiting.items() if left > 0 and lane.checkpoint in room.checkpoints
    ]


def _take(lanes: list[Lane], rows: int, *waiting: dict[Lane, int]) -> tuple[Lane, ...]:
    """The first lanes that fill so many rows; what they take no longer waits."""
    chosen = []
    for lane in lanes:
        if rows <= 0:
            break
        chosen.append(lane)
        taken = min(rows, waiting[0][lane])
        for left in waiting:
            if lane in left:
                left[lane] -= taken
        rows -= taken
    return tuple(chosen)


def _grid(lane: Lane) -> tuple[str, int, int]:
    return lane.checkpoint, lane.height, lane.width
