"""Which lanes go to which worker: pure, so that a test is a list in and a list out."""

import heapq
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from farm.job import Priority
from farm.spec import Lane

LEAST_SHARE = 8  # a worker's part of scarce work is not below such a part of its room


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
    """Match queued lanes with workers that have room; what is urgent comes first."""
    urgent: dict[Lane, int] = {}
    waiting: dict[Lane, int] = {}
    classes: dict[Lane, set[Priority]] = {}
    for item in work:
        if item.priority is Priority.URGENT:
            urgent[item.lane] = urgent.get(item.lane, 0) + item.pictures
        else:
            waiting[item.lane] = waiting.get(item.lane, 0) + item.pictures
            classes.setdefault(item.lane, set()).add(item.priority)
    return [*_plan_urgent(urgent, rooms), *_plan_others(waiting, classes, rooms)]


def _plan_urgent(urgent: dict[Lane, int], rooms: Sequence[Room]) -> Iterator[Grant]:
    """Divided evenly, and to the emptiest of those with as many urgent rows: beside data sets an
    urgent row is as quick as in an empty engine, beside other urgent ones it is not. Where every
    worker is full it goes into the room that is kept for it, so that a person at a screen does not
    wait for a data set.
    """
    free = [(max(room.urgent_rows, room.rows), room) for room in rooms]
    shared = _share(urgent, free)
    shared.sort(key=lambda share: (-share.free, -share.room.rows, share.room.session))
    for _, room, rows in shared:
        if chosen := _take(sorted(_fitting(urgent, room)), rows, urgent):
            yield Grant(room.session, chosen, rows, Priority.URGENT)


def _plan_others(
    waiting: dict[Lane, int], classes: dict[Lane, set[Priority]], rooms: Sequence[Room]
) -> Iterator[Grant]:
    """Work that does not fill all workers levels what they hold.

    A worker prefers lanes of the highest class, then those whose grid it already runs, since rows
    of one token grid share its forward passes. A lane of each lower class that has work is named as
    well: the lease gives every class its floor, among the lanes that it is told.
    """
    rank = {lane: min(one.rank for one in its) for lane, its in classes.items()}
    shared = _share(waiting, [(room.rows, room) for room in rooms])
    shared.sort(key=lambda share: (-share.free, share.room.session))
    for free, room, part in shared:
        grids = {_grid(lane) for lane in room.lanes}
        fitting = _fitting(waiting, room)
        fitting.sort(key=lambda lane: (rank[lane], _grid(lane) not in grids, -waiting[lane], lane))
        rows = max(part, free // LEAST_SHARE)
        if chosen := _take(fitting, rows, waiting):
            yield Grant(room.session, _with_lower_classes(chosen, fitting, classes), rows)


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


class _Share(NamedTuple):
    free: int  # rows
    room: Room
    rows: int  # of these, its part of the work


def _share(work: dict[Lane, int], free: Sequence[tuple[int, Room]]) -> list[_Share]:
    """Who takes part in this work, so that afterwards as much room is left in each."""
    pictures: dict[str, int] = {}
    for lane, count in work.items():
        pictures[lane.checkpoint] = pictures.get(lane.checkpoint, 0) + count
    levels = {
        checkpoint: _level([rows for rows, room in free if checkpoint in room.checkpoints], count)
        for checkpoint, count in pictures.items()
    }
    shares = []
    for rows, room in free if levels else ():
        level = min((levels[one] for one in room.checkpoints if one in levels), default=rows)
        if rows > level:
            shares.append(_Share(rows, room, rows - level))
    return shares


def _level(rooms: Sequence[int], pictures: int) -> int:
    """Room that so many pictures leave in each worker if they go to those with most."""
    largest = heapq.nlargest(pictures, rooms)  # others do not take part
    together = 0
    for count, rows in enumerate(largest, start=1):
        together += rows
        following = largest[count] if count < len(largest) else 0
        if together - pictures >= count * following:
            return max(together - pictures, 0) // count
    return 0


def _fitting(waiting: dict[Lane, int], room: Room) -> list[Lane]:
    return [
        lane for lane, left in waiting.items() if left > 0 and lane.checkpoint in room.checkpoints
    ]


def _take(lanes: list[Lane], rows: int, waiting: dict[Lane, int]) -> tuple[Lane, ...]:
    """The first lanes that fill so many rows; what they take no longer waits."""
    chosen = []
    for lane in lanes:
        if rows <= 0:
            break
        chosen.append(lane)
        taken = min(rows, waiting[lane])
        waiting[lane] -= taken
        rows -= taken
    return tuple(chosen)


def _with_lower_classes(
    chosen: tuple[Lane, ...], lanes: list[Lane], classes: dict[Lane, set[Priority]]
) -> tuple[Lane, ...]:
    """And the first lane, of the same checkpoints, of each class that is not among the chosen."""
    named = list(chosen)
    checkpoints = {lane.checkpoint for lane in chosen}
    seen = set().union(*(classes[lane] for lane in chosen))
    for lane in lanes:
        if lane.checkpoint in checkpoints and not classes[lane] <= seen:
            named.append(lane)
            seen |= classes[lane]
    return tuple(named)


def _grid(lane: Lane) -> tuple[str, int, int]:
    return lane.checkpoint, lane.height, lane.width
