"""The boards and alerts of ``infra``: what they ask for is there, by name and with a Prometheus."""

import json
import math
import re
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import alert_cases
import boards
import httpx2
import pytest
import yaml
from fake_engine import BAD_PROMPT
from harness import INFO, Gateway, png, post

from farm.gateway.metrics import Metrics
from farm.job import JobOptions, TaskDraft, job_id
from farm.measures import MEASURES
from farm.queue import JobHeader
from farm.spec import Lane, Mode
from workers import Workers

INFRA = Path(__file__).parents[2] / "infra"
ALERTS = INFRA / "prometheus" / "alerts.yml"
NAME = re.compile(r"\b(?:ray_)?farm_\w+")

needs_prometheus = pytest.mark.skipif(
    shutil.which("prometheus") is None, reason="there is no prometheus here (Debian: prometheus)"
)


def rules() -> dict[str, dict[str, Any]]:
    """By the names of their alerts."""
    [group] = yaml.safe_load(ALERTS.read_text())["groups"]
    return {rule["alert"]: rule for rule in group["rules"]}


def alerts() -> dict[str, str]:
    """Name → expression."""
    return {name: rule["expr"] for name, rule in rules().items()}


def panels(board: Path) -> dict[str, str]:
    """Title → expression."""
    found = {}
    for panel in json.loads(board.read_text())["panels"]:
        [target] = panel["targets"]
        found[panel["title"]] = target["expr"]
    return found


def exported(gateway: Gateway) -> set[str]:
    text = Metrics(gateway.queue, gateway.queue.sessions).text().decode()
    names = set(re.findall(r"^# TYPE (\w+) (?!histogram)", text, re.MULTILINE))
    for histogram in re.findall(r"^# TYPE (\w+) histogram", text, re.MULTILINE):
        names |= {f"{histogram}_{ending}" for ending in ("bucket", "sum", "count")}
    assert all(name.startswith("farm_") for name in names)
    return names


def test_the_boards_are_what_their_tool_writes() -> None:
    for path, text in boards.boards().items():
        assert path.read_text() == text, f"run tools/boards.py for {path.name}"


def test_every_name_in_boards_and_alerts_is_exported(gateway: Gateway) -> None:
    names = exported(gateway)
    asked = [*panels(boards.BOARD).items(), *alerts().items()]
    for what, expression in asked:
        wanted = set(NAME.findall(expression))
        assert wanted or "up{" in expression
        assert wanted <= names, (what, wanted - names)


def test_every_name_on_rays_board_is_told_to_ray() -> None:
    told = {f"ray_{measure.name}" for measure in MEASURES}
    told |= {f"{name}_{ending}" for name in told for ending in ("sum", "count")}
    for title, expression in panels(boards.RAY_BOARD).items():
        wanted = set(NAME.findall(expression))
        assert wanted, title
        assert wanted <= told, (title, wanted - told)


def test_every_alert_says_what_to_do() -> None:
    for name, rule in rules().items():
        assert rule["labels"]["severity"] in ("page", "warn"), name
        assert rule["annotations"].keys() == {"summary", "action"}, name


@needs_prometheus
def test_promtool_accepts_the_configuration() -> None:
    subprocess.run(
        ["promtool", "check", "config", "prometheus.yml"],
        cwd=INFRA / "prometheus", check=True, capture_output=True,
    )  # fmt: skip


@needs_prometheus
def test_every_alert_fires_when_it_should_and_not_before(tmp_path: Path) -> None:
    assert [case.alert for case in alert_cases.CASES] == list(alerts())
    asked = alert_cases.promtool_tests(rules(), str(ALERTS))
    (tmp_path / "tests.yml").write_text(yaml.safe_dump(asked))
    done = subprocess.run(
        ["promtool", "test", "rules", str(tmp_path / "tests.yml")], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture
def prometheus(gateway: Gateway, tmp_path: Path) -> Iterator[httpx2.Client]:
    """A Prometheus with the farm's configuration, but quicker, that scrapes the test's gateway."""
    settings = yaml.safe_load((INFRA / "prometheus" / "prometheus.yml").read_text())
    settings["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    settings["rule_files"] = [str(ALERTS)]
    settings["scrape_configs"][0]["static_configs"] = [{"targets": [gateway.url.split("//")[1]]}]
    (tmp_path / "prometheus.yml").write_text(yaml.safe_dump(settings))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    process = subprocess.Popen(
        [
            "prometheus",
            f"--config.file={tmp_path / 'prometheus.yml'}",
            f"--storage.tsdb.path={tmp_path / 'tsdb'}",
            f"--web.listen-address={address}",
        ],
        stderr=(tmp_path / "prometheus.log").open("ab"),
    )
    try:
        with httpx2.Client(base_url=f"http://{address}", timeout=10) as client:
            yield client
    finally:
        process.terminate()
        process.wait(30)


def has_data(prometheus: httpx2.Client, expression: str) -> bool:
    """Whether it gives a number; false too while the server is not there yet."""
    try:
        answer = prometheus.get("/api/v1/query", params={"query": expression})
    except httpx2.TransportError:
        return False
    if answer.status_code == 503:
        return False
    assert answer.status_code == 200, (expression, answer.text)
    found = answer.json()["data"]["result"]
    return any(not math.isnan(float(series["value"][1])) for series in found)


def watched(alert: str) -> list[str]:
    """What an alert compares, without the limits."""
    parts = re.split(r"\band\b", " ".join(alert.split()))
    return [re.sub(r"\s*(==|>|<)\s*[\d.*^ ]+$", "", part.strip()) for part in parts]


def keep_busy(gateway: Gateway, workers: Workers) -> Callable[[], None]:
    """Something of all that is counted; called again, more of it."""
    lane = Lane(INFO.name, Mode.TEXT2IMG, 64, 64)
    for priority in ("urgent", "normal"):  # no worker serves them
        options = JobOptions.model_validate({"priority": priority})
        header = JobHeader(job_id(), "local", options, "f" * 64)
        gateway.queue.submit(header, [TaskDraft(0, lane, 4, 48)])
    workers.start()
    http = gateway.client()
    asset = http.put("/v1/assets", content=png(32, 32)).json()["id"]

    def more() -> None:
        for render in (
            {"prompt": "a dog", "num_images": 4},
            {"prompt": "a dog", "image": asset, "strength": 0.5, "num_images": 2},
            {"prompt": BAD_PROMPT},
        ):
            assert post(http, {"checkpoint": "fake", **render}).status_code == 201
        session = secrets.token_hex(16)
        gateway.queue.register(session, "worker-9", ["none"], {})
        gateway.queue.end(session, "crash")

    return more


@needs_prometheus
@pytest.mark.slow
def test_every_panel_and_alert_has_data_while_a_farm_works(
    gateway: Gateway, workers: Workers, prometheus: httpx2.Client
) -> None:
    more = keep_busy(gateway, workers)
    missing: dict[str, Any] = dict(panels(boards.BOARD))
    for name, expression in alerts().items():
        missing |= {f"{name} {at}": one for at, one in enumerate(watched(expression))}
    deadline = time.monotonic() + 200
    while missing:
        assert time.monotonic() < deadline, missing
        more()
        time.sleep(0.5)
        missing = {
            what: expression
            for what, expression in missing.items()
            if not has_data(prometheus, expression)
        }
    rules = prometheus.get("/api/v1/rules").json()["data"]["groups"][0]["rules"]
    assert {rule["health"] for rule in rules} <= {"ok", "unknown"}
