"""What a stranger finds in Ray's dashboard: who draws what, which job's log lines, how fast."""

import json
import re
import time
import urllib.request
from collections.abc import Callable
from typing import Any

import pytest
from running_farm import RunningFarm

import farm as package
from farm_workers.worker.timeline import KIND

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200), pytest.mark.xdist_group("farm")]


def ask(farm: RunningFarm, path: str) -> str:
    port = json.loads((farm.data / "ports.json").read_text())["dashboard"]
    token = (farm.data / "run" / "ray-token").read_text().strip()
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}{path}", headers={"Authorization": f"Bearer {token}"}
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        return str(answer.read().decode())


def until(condition: Callable[[], object], seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come true in time"
        time.sleep(0.5)


def living_worker(farm: RunningFarm) -> dict[str, Any]:
    actors = json.loads(ask(farm, "/logical/actors"))["data"]["actors"].values()
    [worker] = [actor for actor in actors if actor["state"] == "ALIVE"]
    return dict(worker)


def test_the_dashboard_names_a_worker_by_what_it_draws_with(farm: RunningFarm) -> None:
    worker = living_worker(farm)
    assert worker["name"] == "farm-worker-0"
    assert worker["reprName"].startswith("worker-0 on CPU: tiny@")
    assert "float32" in worker["reprName"]
    assert "shapes-128@" in worker["reprName"]


def test_the_farms_driver_says_which_farm_it_is(farm: RunningFarm) -> None:
    jobs = [job for job in json.loads(ask(farm, "/api/jobs/")) if job["status"] == "RUNNING"]
    [driver] = [job for job in jobs if "place_workers" in job["entrypoint"]]
    expected = {
        "job_name": f"amused-farm {farm.url}",
        "farm": "farm",
        "version": package.__version__,
        "page": farm.url,
    }
    assert driver["metadata"].items() >= expected.items()


def test_the_log_view_has_the_lines_of_a_job(farm: RunningFarm) -> None:
    job = farm.submit("a green star", "--num-images", 2)
    farm.run("wait", job)
    line = re.compile(rf"task {job}/0/0: committed, 2 pictures in \d+\.\d s")
    until(lambda: line.search((farm.data / "logs" / "worker-0.log").read_text()))
    actor = living_worker(farm)["actorId"]
    shown = f"/api/v0/logs/file?actor_id={actor}&suffix=err&lines=-1"
    until(lambda: line.search(ask(farm, shown)))


def test_the_timeline_has_a_span_for_each_task(farm: RunningFarm) -> None:
    job = farm.submit("a white ring", "--num-images", 3)
    farm.run("wait", job)

    def spans() -> list[dict[str, Any]]:
        events = json.loads(ask(farm, "/api/v0/tasks/timeline"))
        return [event for event in events if event.get("args", {}).get("job") == job]

    until(lambda: len(spans()) == 2)  # the second one finalises the job
    drawn = next(span for span in spans() if span["args"]["lane"])
    assert re.fullmatch(rf"task {job}/0/0: 3 pictures in \d+\.\d s", drawn["name"])
    assert drawn["cat"] == KIND
    assert drawn["args"]["outcome"] == "done"
    assert drawn["dur"] > 0


def test_rays_own_folder_of_boards_has_the_farms(farm: RunningFarm) -> None:
    boards = farm.data / "run" / "grafana"
    assert json.loads((boards / "farm.json").read_text())["title"] == "amused-farm"
    until(lambda: (boards / "default_grafana_dashboard.json").exists())
    session = farm.data / "run" / "ray" / "session_latest" / "metrics" / "grafana"
    provisioned = (session / "provisioning" / "dashboards" / "default.yml").read_text()
    assert str(boards) in provisioned


def test_the_metrics_of_workers_are_beside_rays(farm: RunningFarm) -> None:
    farm.run("wait", farm.submit("a blue square"))
    found = json.loads(
        (farm.data / "run" / "ray" / "prom_metrics_service_discovery.json").read_text()
    )
    targets = [target for group in found for target in group["targets"]]

    def scraped() -> str:
        told = ""
        for target in targets:
            with urllib.request.urlopen(f"http://{target}/metrics", timeout=60) as answer:
                told += answer.read().decode()
        return told

    until(lambda: re.search(r'ray_farm_worker_pictures\{.*worker="worker-0"', scraped()))
