"""The simulation: the queue's scripts by another clock, and a small farm in it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from queue_bench import CHECKPOINT, LANE

from farm.errors import InvalidInput
from farm.job import JobOptions, Priority, TaskDraft, job_id
from farm.local.valkey import ServerProcess
from farm.queue import JobHeader, connect
from farm.queue.scripts import read_scripts
from farm.simulation.fleet import Fleet
from farm.simulation.service import H200, Service, read_services
from farm.simulation.simulation import Plan, Simulation
from farm.simulation.virtual_queue import VirtualQueue, with_virtual_clock
from farm.simulation.workload import Workload
from farm.spec import Lane, Mode


@pytest.fixture(scope="module")
def quick(folder: Path) -> Iterator[ServerProcess]:
    """A server that does not wait for its disk."""
    server = ServerProcess(folder / "simulated", fsync="no")
    with server.serving():
        yield server


@pytest.fixture
def client(quick: ServerProcess) -> Any:
    client = connect(quick.url)
    client.flushall()
    return client


MEASURED = {
    "scheduler_pass_seconds_here", "server_load", "gpus_of_one_server", "cells", "real_seconds",
}  # fmt: skip
EVEN = Service(  # ten pictures a second, whatever they are
    row_step=0.01, picture=0, encode=0, urgent_step=0.01, urgent_picture=0, alone_step=0.01
)


def simulated(client: Any, fleet: Fleet, work: Workload, **given: Any) -> dict[str, Any]:
    client.flushall()
    return Simulation(client, Plan(fleet, H200, work, **given)).run().facts()


def test_no_script_of_the_simulation_asks_the_server_for_the_time() -> None:
    assert not any("TIME" in source for source in with_virtual_clock(read_scripts()).values())


def test_scripts_that_read_the_clock_elsewhere_are_refused() -> None:
    with pytest.raises(ValueError, match="does not read the clock once"):
        with_virtual_clock({"lease": "return 1"})


def test_a_lease_runs_out_by_the_clock_that_is_handed_in(client: Any) -> None:
    now = 0.0
    queue = VirtualQueue(client, lambda: now)
    session = "a" * 32
    header = JobHeader(job_id(), "ann", JobOptions(priority=Priority.URGENT), "f" * 64)
    queue.submit(header, [TaskDraft(0, LANE, 4, 48)])
    queue.register(session, "w", [CHECKPOINT], {})
    queue.heartbeat(session, 100, {}, {}, 10_000)
    assert len(queue.lease(session, None, 100, 10_000)) == 1
    now = 9.9
    queue.tick()
    assert queue.status(header.job, "ann").tasks.leased == 1
    now = 10.1
    queue.tick()
    assert queue.status(header.job, "ann").tasks.waiting == 1
    now = 10.7  # it waits for half a second at most
    queue.tick()
    assert queue.status(header.job, "ann").tasks.queued == 1


def test_a_farm_of_equal_pictures_takes_as_long_as_arithmetic_says(client: Any) -> None:
    lane = Lane("simulated/64x64@1", Mode.TEXT2IMG, 64, 64)
    work = Workload({lane: 4000}, steps=10, tenants=1, shard_pictures=20, urgent_per_second=0)
    plan = Plan(Fleet(4, 1, 0, 0), {"64x64": EVEN}, work, rows=16)
    facts = Simulation(client, plan).run().facts()
    assert facts["pictures"] == 4000
    # 100 s of pure work each. Workers start within a second; the last tasks are 2 s long.
    assert 100 <= facts["seconds"] <= 105
    assert facts["busy_share"] > 0.97
    assert facts["rendered_again_share"] == 0


@pytest.mark.slow
def test_every_picture_is_stored_although_machines_are_lost_and_workers_crash(
    client: Any,
) -> None:
    work = Workload.mixed(20_000, H200, tenants=2, shard_pictures=50, urgent_per_second=2)
    fleet = Fleet(20, 1, lost_per_hour=12, crashes_per_hour=12)
    facts = simulated(client, fleet, work, rows=32)
    assert (facts["pictures"], facts["failed"]) == (20_000, 0)
    assert facts["machines_lost"] + facts["crashes"] > 0
    assert facts["rendered_again_share"] > 0
    assert facts["busy_share"] < 1
    assert facts["urgent"] > 0


@pytest.mark.slow
def test_a_farm_grows_with_its_backlog_and_ends_what_it_does_not_need(client: Any) -> None:
    lane = Lane("simulated/64x64@1", Mode.TEXT2IMG, 64, 64)
    work = Workload(
        {lane: 2_000}, steps=10, tenants=8, shard_pictures=20, urgent_per_second=0,
        spread_seconds=400,
    )  # fmt: skip
    fleet = Fleet(8, 2, 0, 0, least_gpus=0)
    plan = Plan(fleet, {"64x64": EVEN}, work, rows=16, target_seconds=30)
    facts = Simulation(client, plan).run().facts()
    assert (facts["pictures"], facts["failed"]) == (2_000, 0)
    assert 2 <= facts["gpus_most"] <= 8
    assert facts["gpu_hours"] < 8 * facts["seconds"] / 3600 / 2, "200 s of work for one"
    assert facts["rendered_again_share"] == 0


def test_the_same_seed_simulates_the_same(client: Any) -> None:
    work = Workload.mixed(2_000, H200, tenants=2, urgent_per_second=2)
    runs = [simulated(client, Fleet(4, 2), work, seed=7) for _ in range(2)]
    first, second = ({k: v for k, v in run.items() if k not in MEASURED} for run in runs)
    assert first == second


def test_measured_times_can_be_given_and_wrong_ones_are_explained(tmp_path: Path) -> None:
    path = tmp_path / "times.json"
    path.write_text('{"64x64": ' + EVEN.model_dump_json() + "}")
    assert read_services(path) == {"64x64": EVEN}
    for wrong in (
        "{",
        "[]",
        '{"64x64": {"row_step": 1}}',
        '{"big": ' + EVEN.model_dump_json() + "}",
    ):
        path.write_text(wrong)
        with pytest.raises(InvalidInput):
            read_services(path)
