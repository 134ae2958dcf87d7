"""How many workers there are: pure numbers."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from farm.job import Priority
from farm.queue import LaneBacklog, Session
from farm.scheduler.growth import Demand, Growth, demand, workers_for
from farm.spec import Lane, Mode

demands = st.builds(
    Demand,
    row_steps=st.floats(0, 1e12),
    pace=st.one_of(st.just(0.0), st.floats(0.001, 1e6)),
    waiting=st.booleans(),
)
limits = st.tuples(st.integers(0, 50), st.integers(0, 50)).map(sorted)
targets = st.floats(0.1, 3600)


@given(demands, limits, targets)
def test_the_number_is_within_its_limits(found: Demand, limit: list[int], target: float) -> None:
    least, most = limit
    wanted = workers_for(found, least=least, most=most, target_seconds=target)
    assert least <= wanted <= most
    if not found.waiting:
        assert wanted == least


@given(st.floats(1, 1e9), st.floats(0.1, 1e4), targets)
def test_what_is_wanted_does_the_work_in_time_and_one_fewer_does_not(
    row_steps: float, pace: float, target: float
) -> None:
    wanted = workers_for(
        Demand(row_steps, pace, waiting=True), least=0, most=10**15, target_seconds=target
    )
    assert wanted * pace * target >= row_steps * (1 - 1e-9)
    assert wanted == 1 or (wanted - 1) * pace * target < row_steps * (1 + 1e-9)


@given(st.floats(0, 1e9), st.floats(0, 1e9), st.floats(0.1, 1e4), targets)
def test_more_work_never_wants_fewer(one: float, two: float, pace: float, target: float) -> None:
    fewer, more = (
        workers_for(Demand(row_steps, pace, waiting=True), least=0, most=100, target_seconds=target)
        for row_steps in sorted((one, two))
    )
    assert fewer <= more


def test_one_worker_finds_out_how_long_it_takes() -> None:
    assert workers_for(Demand(1e9, 0.0, waiting=True), least=0, most=8, target_seconds=60) == 1


@given(
    st.integers(0, 20),
    st.lists(st.tuples(st.integers(0, 20), st.floats(0.1, 30)), min_size=1, max_size=40),
)
def test_it_grows_at_once_and_never_below_what_was_needed_lately(
    first: int, looks: list[tuple[int, float]]
) -> None:
    patience, now, growth = 60.0, 0.0, Growth(first)
    history: list[tuple[float, int]] = []
    for wanted, seconds in looks:
        now += seconds
        history.append((now, wanted))
        before, growth = growth, growth.then(wanted, now, patience)
        assert growth.count >= wanted
        assert growth.count <= max(before.count, wanted)
        if growth.count < before.count:
            since = before.fewer_since
            assert since is not None
            assert now - since >= patience
            assert growth.count == max(number for at, number in history if at >= since)


def test_a_pause_between_jobs_ends_no_worker() -> None:
    growth = Growth(3)
    for now, wanted in zip(itertools.count(0, 10), (3, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0), strict=False):
        growth = growth.then(wanted, now, 60)
        assert growth.count == 3
    assert growth.then(0, 120, 60).count == 0


def session(worker: str, checkpoint: str, held: int = 0, **stats: object) -> Session:
    return Session(worker, worker, (checkpoint,), 8, held, 0, {}, stats, None)


def test_the_work_is_counted_in_row_steps_as_workers_measured_them() -> None:
    small, large = (Lane("a/b@1", Mode.TEXT2IMG, side, side) for side in (64, 128))
    other = Lane("c@2", Mode.TEXT2IMG, 64, 64)
    backlog = [
        LaneBacklog(small, Priority.NORMAL, 1, 10),
        LaneBacklog(large, Priority.BULK, 1, 100),
        LaneBacklog(other, Priority.NORMAL, 1, 1000),
    ]
    measured = session(
        "one", "a/b@1", 1, paces={str(small): 50.0}, row_steps={str(small): 12.0}, left=600
    )
    found = demand(frozenset({"b"}), backlog, [measured, session("two", "c@2", 1, left=99)])
    assert found == Demand(10 * 12 + 100 * 12 + 600, 50.0, waiting=True)
    # Another has drawn larger ones only, and a third is new.
    others = [
        session("four", "a/b@1", paces={str(large): 30.0}, row_steps={str(large): 20.0}),
        session("five", "a/b@1"),
    ]
    found = demand(frozenset({"b"}), backlog, [measured, *others])
    assert found == Demand(10 * 12 + 100 * 20 + 600, 40.0, waiting=True)
    assert demand(frozenset({"d"}), backlog, [measured]) == Demand(0, 0, waiting=False)
    assert demand(frozenset(), backlog, []).waiting


@pytest.mark.parametrize("held", [0, 1])
def test_what_a_worker_holds_is_work(held: int) -> None:
    found = demand(frozenset(), [], [session("one", "a@1", held)])
    assert found.waiting == bool(held)
