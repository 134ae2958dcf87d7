"""A farm on four hosts with networks of their own; ``make cluster`` is the long form, with Ray."""

import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster import GATEWAY_PORT, HOSTS, UNITS, Cluster, read_unit
from data_host import QUEUE_PORT, server_speaks_tls
from follow_page import blocks
from network import Network, wait_until, why_not

STUB = Path(__file__).parents[2] / "bench" / "stub_worker.py"
PICTURES = 48
REASON = why_not()

needs_hosts = pytest.mark.skipif(REASON is not None, reason=f"no hosts can be made: {REASON}")


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Workers without Ray, whose engines wait, with the queue's user for workers; the store is a
    folder that all hosts share."""
    with tempfile.TemporaryDirectory(prefix="farm-hosts-") as name:
        folder = Path(name)
        network = Network(folder, HOSTS, lossy=["w2"])
        settings = {
            "FARM_STORE": str(folder / "store"),
            "FARM_LEASE_MS": "3000",
            "RAY_ADDRESS": "",
        }
        cluster = Cluster(folder, network, settings=settings)
        with network.up():
            cluster.start_queue()
            for worker in ("w1", "w2"):
                host = cluster.hosts[worker]
                stub = [sys.executable, str(STUB), worker, "4", "0.05"]
                host.keep("worker", stub, cluster.environment(host, without_ray=True))
            cluster.keep_unit(cluster.hosts["head"], "farm-scheduler")
            cluster.start_gateway()
            with cluster.watching():
                wait_until(lambda: len(cluster.watch.lives) == 2, "the workers")
                yield cluster


@pytest.mark.xdist_group("hosts")
@needs_hosts
def test_a_job_survives_a_cut_cable_and_stores_each_picture_once(cluster: Cluster) -> None:
    victim = cluster.hosts["w1"]
    lines = [{"prompt": f"picture {number}", "seed": number} for number in range(PICTURES)]
    path = cluster.folder / "renders.jsonl"
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    job = cluster.client("submit", str(path), "--sink", "webdataset", "--shard-size", "4").strip()
    wait_until(lambda: held(cluster, "w1") > 0, "w1 holds a task")
    cluster.network.cut(victim)
    wait_until(lambda: held(cluster, "w1") == 0, "w1's tasks are given back")
    cluster.network.mend(victim)
    cluster.client("wait", job, "--timeout", "120")
    wait_until(lambda: len(cluster.watch.lives) == 2, "w1 is back")
    cluster.client("verify", job)
    out = cluster.folder / "out"
    cluster.client("fetch", job, "-o", str(out))
    rows = [json.loads(line) for line in (out / "manifest.jsonl").read_text().splitlines()]
    assert sorted((row["render"], row["image"]) for row in rows) == [
        (number, 0) for number in range(PICTURES)
    ]


@pytest.mark.xdist_group("hosts")
@needs_hosts
def test_a_host_listens_where_it_is_said_and_asks_for_a_secret(cluster: Cluster) -> None:
    tls = " over TLS" if server_speaks_tls() else ""
    assert {(one.host, one.port, one.asks_for) for one in cluster.scan()} == {
        ("data", QUEUE_PORT, f"a password{tls}"),
        ("head", GATEWAY_PORT, "a key (401) over TLS"),
    }


def held(cluster: Cluster, worker: str) -> int:
    return sum(life.held for life in cluster.watch.lives if life.worker == worker)


def test_each_unit_runs_a_command_that_exists() -> None:
    environment = {"NODE_ADDRESS": "10.0.0.11", "RAY_ADDRESS": "10.0.0.11:6379"}
    for unit in UNITS.glob("*.service"):
        program, *_ = read_unit(unit.stem).words(environment)
        assert Path(program).exists(), unit.name


def test_each_block_of_the_page_is_for_known_hosts() -> None:
    assert {name for block in blocks() for name in block.hosts} == set(HOSTS)
