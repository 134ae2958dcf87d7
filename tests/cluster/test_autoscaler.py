"""Machines come with the work and go after it: Ray's own autoscaler, with its fake provider.

``make growth`` runs it; most of its two minutes are Ray's own starts.
"""

import contextlib
import json
import os
import secrets
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from ray.autoscaler._private.fake_multi_node.node_provider import FAKE_HEAD_NODE_ID
from test_placement import SECONDS, Cluster, Schedulers, finished
from test_worker import Farm, until

from farm.local.ports import free_port
from farm.queue.placed_workers import WorkerState
from farm.worker_group import WorkerGroup

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif("FARM_GROWTH" not in os.environ, reason="make growth does it"),
]

HERE = Path(__file__).parent
MARK = "FARM_TEST_CLUSTER"
IDLE_SECONDS = 6
STARTED = "Ray runtime started"  # as ``ray start`` says it


class Autoscaled(Cluster):
    """A head without room for workers; the autoscaler may add three nodes with a CPU each."""

    def __init__(self, folder: Path) -> None:
        port = free_port()
        self.address = f"127.0.0.1:{port}"
        self._mark = secrets.token_hex(16)
        self.environment = {**self.settings(folder), MARK: self._mark}
        config, log = folder / "cluster.json", folder / "ray.log"
        config.write_text(json.dumps(_config(self.address)))
        self.process = subprocess.Popen(
            [
                f"{sys.prefix}/bin/ray", "start", "--head", "--block", f"--port={port}",
                "--node-ip-address=127.0.0.1", "--num-cpus=0", "--include-dashboard=false",
                f"--dashboard-port={free_port()}",  # otherwise its agent wants that of another Ray
                f"--object-store-memory={80 * 2**20}", f"--autoscaling-config={config}",
            ],
            env={
                **os.environ,
                **self.environment,
                "AUTOSCALER_UPDATE_INTERVAL_S": "1",
                "RAY_FAKE_CLUSTER": "1",
                "RAY_raylet_start_wait_time_s": "180",
                "RAY_enable_autoscaler_v2": "1",
                "RAY_CLOUD_INSTANCE_ID": FAKE_HEAD_NODE_ID,
                "RAY_OVERRIDE_NODE_ID_FOR_TESTING": FAKE_HEAD_NODE_ID,
            },
            stdout=log.open("w"),
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip
        until(lambda: self.process.poll() is not None or STARTED in log.read_text(), 240)
        assert self.process.poll() is None, log.read_text()

    @property
    def nodes(self) -> int:
        """That the autoscaler has added: each has a raylet."""
        names = []
        for process in self._processes():
            with contextlib.suppress(psutil.NoSuchProcess):  # it has ended meanwhile
                names.append(process.name())
        return names.count("raylet") - 1

    def end(self) -> None:
        while processes := self._processes():
            for process in processes:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.send_signal(signal.SIGKILL)
            psutil.wait_procs(processes, 10)
        self.process.wait()

    def _processes(self) -> list[psutil.Process]:
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get(MARK) == self._mark and process.pid != os.getpid():
                    found.append(process)
            except psutil.Error:
                continue
        return found


def _config(address: str) -> dict[str, object]:
    return {
        "cluster_name": "growth",
        "max_workers": 3,
        "idle_timeout_minutes": IDLE_SECONDS / 60,
        "provider": {
            "type": "external",
            "module": "ray_autoscaler.LoopbackNodes",
            "gcs_address": address,
            "launch_multiple": True,
            "head_node_id": FAKE_HEAD_NODE_ID,
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
            "foreground_node_launch": True,
        },
        "available_node_types": {
            "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
            "machine": {
                "resources": {"CPU": 1, "object_store_memory": 80 * 2**20},
                "node_config": {},
                "min_workers": 0,
                "max_workers": 3,
            },
        },
        "head_node_type": "ray.head.default",
        "file_mounts": {},
        "cluster_synced_files": [],
        "file_mounts_sync_continuously": False,
        "rsync_exclude": [],
        "rsync_filter": [],
        "initialization_commands": [],
        "setup_commands": [],
        "head_setup_commands": [],
        "worker_setup_commands": [],
        "head_start_ray_commands": [],
        "worker_start_ray_commands": [],
        "auth": {},
    }


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Autoscaled]:
    cluster = Autoscaled(tmp_path)
    yield cluster
    cluster.end()


@pytest.fixture
def schedulers(
    redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cluster: Autoscaled
) -> Iterator[Schedulers]:
    schedulers = Schedulers(Farm(redis_url, tmp_path / "store", monkeypatch), cluster, tmp_path)
    yield schedulers
    schedulers.stop(end_workers=True)


def test_machines_come_with_the_work_and_go_after_it(
    schedulers: Schedulers, cluster: Autoscaled
) -> None:
    farm = schedulers.farm
    schedulers.start(WorkerGroup("worker", 0, 3), FARM_TRACE=str(schedulers.trace))
    jobs = [farm.submit(*(f"{job} {number}" for number in range(40))) for job in range(20)]
    schedulers.until(lambda: "pending" in schedulers.states().values())
    [waiting] = schedulers.workers().values()
    assert waiting.why == "no node of the cluster has 1 CPU"
    schedulers.all_are(WorkerState.RUNNING, 1)
    assert cluster.nodes == 1
    schedulers.until(lambda: schedulers.trace.with_suffix(".finished").exists())
    held = schedulers.trace.with_suffix(".held")
    held.touch()  # so that the work is not done before they are there
    schedulers.all_are(WorkerState.RUNNING, 3)
    assert cluster.nodes == 3
    held.unlink()
    for job in jobs:
        until(lambda: farm.state(job) == "done", SECONDS)  # noqa: B023
    schedulers.all_are(WorkerState.RUNNING, 0)
    schedulers.until(lambda: cluster.nodes == 0)
    assert set(finished(schedulers).values()) == {1}
    assert len(finished(schedulers)) == 40 * len(jobs)
