"""The planner: a list in, a list out."""

from farm.job import Priority
from farm.scheduler.planner import Grant, Room, Work, even_out, plan
from farm.spec import Lane, Mode

SMALL = Lane("shapes-64@1", Mode.TEXT2IMG, 64, 64)
SMALL_INPAINT = Lane("shapes-64@1", Mode.INPAINT, 64, 64)
LARGE_INPAINT = Lane("shapes-64@1", Mode.INPAINT, 128, 128)
LARGE = Lane("shapes-64@1", Mode.TEXT2IMG, 128, 128)
OTHER = Lane("shapes-128@1", Mode.TEXT2IMG, 128, 128)
HOLDS_SMALL = frozenset({SMALL.checkpoint})


def room(session: str = "a", rows: int = 64, **facts: object) -> Room:
    return Room(session, HOLDS_SMALL, rows, **facts)  # type: ignore[arg-type]


def test_a_worker_gets_only_lanes_of_the_checkpoints_it_holds() -> None:
    for priority in (Priority.URGENT, Priority.BULK):
        work = [Work(OTHER, priority, 5), Work(SMALL, Priority.BULK, 5)]
        assert plan(work, [room()]) == [Grant("a", (SMALL,), 8)]


def test_a_checkpoint_with_little_work_does_not_keep_a_worker_from_that_of_its_others() -> None:
    both = Room("both", frozenset({SMALL.checkpoint, OTHER.checkpoint}), 64)
    work = [Work(SMALL, Priority.NORMAL, 2), Work(OTHER, Priority.NORMAL, 1000)]
    grants = plan(work, [both, room("empty", 100)])
    assert [(grant.session, grant.lanes, grant.rows) for grant in grants] == [
        ("empty", (SMALL,), 12), ("both", (OTHER,), 64)
    ]  # fmt: skip


def test_a_worker_without_room_gets_nothing() -> None:
    assert plan([Work(SMALL, Priority.NORMAL, 5)], [room(rows=0)]) == []


def test_urgent_lanes_are_named_before_larger_backlogs() -> None:
    work = [Work(SMALL, Priority.BULK, 1000), Work(LARGE, Priority.URGENT, 1)]
    assert [grant.lanes for grant in plan(work, [room()])] == [(LARGE,), (SMALL,)]


def test_a_worker_prefers_the_grid_it_already_runs() -> None:
    work = [Work(LARGE, Priority.NORMAL, 100), Work(SMALL_INPAINT, Priority.NORMAL, 10)]
    grant = plan(work, [room(rows=8, lanes=frozenset({SMALL}))])[0]
    assert grant.lanes == (SMALL_INPAINT,)


def test_affinity_never_starves_a_lane_that_no_busy_worker_prefers() -> None:
    work = [Work(SMALL, Priority.NORMAL, 8), Work(LARGE, Priority.NORMAL, 8)]
    busy = room("busy", 8, lanes=frozenset({SMALL}))
    empty = room("empty", 16)
    granted = {lane for grant in plan(work, [busy, empty]) for lane in grant.lanes}
    assert granted == {SMALL, LARGE}


def test_work_is_not_promised_to_two_workers() -> None:
    grants = plan([Work(SMALL, Priority.NORMAL, 8)], [room("a", 64), room("b", 64)])
    assert [grant.session for grant in grants] == ["a"]


def test_the_emptiest_worker_comes_first() -> None:
    grants = plan([Work(SMALL, Priority.NORMAL, 10)], [room("full", 1), room("empty", 64)])
    assert [grant.session for grant in grants] == ["empty"]


def test_scarce_work_levels_what_workers_hold() -> None:
    rooms = [room("a", 64), room("b", 44), room("full", 4)]
    grants = plan([Work(SMALL, Priority.NORMAL, 40)], rooms)
    assert [(grant.session, grant.rows) for grant in grants] == [("a", 30), ("b", 10)]


def test_urgent_work_is_divided_by_the_urgent_work_that_workers_hold() -> None:
    rooms = [
        room("idle", 62, urgent_rows=62),
        room("full", 0, urgent_rows=64),
        room("half", 32, urgent_rows=64),
    ]
    grants = plan([Work(SMALL, Priority.URGENT, 3)], rooms)
    assert [(grant.session, grant.rows) for grant in grants] == [("half", 2), ("full", 2)]
    assert {grant.lowest for grant in grants} == {Priority.URGENT}


def test_workers_that_cannot_take_the_work_are_not_counted_on() -> None:
    other = Room("idle", frozenset({OTHER.checkpoint}), 1000, urgent_rows=1000)
    busy = room("busy", 10, urgent_rows=20)
    for priority in (Priority.URGENT, Priority.BULK):
        [grant] = plan([Work(SMALL, priority, 5)], [other, busy])
        assert grant.session == "busy"


def test_ample_work_fills_every_worker() -> None:
    grants = plan([Work(SMALL, Priority.NORMAL, 1000)], [room("b", 1), room("a", 64)])
    assert [(grant.session, grant.rows) for grant in grants] == [("a", 64), ("b", 1)]


def test_a_lane_of_each_lower_class_is_named_for_its_floor() -> None:
    work = [
        Work(SMALL, Priority.NORMAL, 1000),
        Work(SMALL_INPAINT, Priority.NORMAL, 10),
        Work(LARGE, Priority.BULK, 10),
    ]
    assert plan(work, [room()])[0].lanes == (SMALL, LARGE)
    work.append(Work(LARGE_INPAINT, Priority.BULK, 5))
    assert plan(work, [room()])[0].lanes == (SMALL, LARGE)


def test_the_plan_does_not_depend_on_the_order_of_the_work() -> None:
    work = [Work(lane, Priority.NORMAL, 5) for lane in (SMALL, SMALL_INPAINT, LARGE)]
    assert plan(work, [room()]) == plan(work[::-1], [room()])


def test_idle_workers_get_half_of_what_others_have_not_begun() -> None:
    def room(session: str, held: int, unbegun: int, *checkpoints: str, rows: int = 8) -> Room:
        return Room(session, frozenset(checkpoints or ("a",)), rows, held=held, unbegun=unbegun)

    assert even_out([room("rich", 4, 3), room("idle", 0, 0)]) == {"rich": 2}
    assert even_out([room("rich", 2, 1), room("idle", 0, 0)]) == {"rich": 1}
    assert even_out([room("rich", 8, 7), room("one", 0, 0), room("two", 0, 0)]) == {"rich": 6}
    assert even_out([room("poor", 2, 1), room("rich", 8, 7), room("idle", 0, 0)]) == {"rich": 4}
    assert even_out([room("rich", 4, 3), room("poor", 1, 0)]) == {}
    assert even_out([room("rich", 4, 3), room("draining", 0, 0, rows=0)]) == {}
    assert even_out([room("loading", 1, 1), room("idle", 0, 0)]) == {}
    assert even_out([room("loading", 3, 3), room("idle", 0, 0)]) == {"loading": 1}
    assert even_out([room("rich", 4, 3, "a", "b"), room("idle", 0, 0, "a")]) == {}
    assert even_out([room("rich", 4, 3, "a"), room("idle", 0, 0, "a", "b")]) == {"rich": 2}
