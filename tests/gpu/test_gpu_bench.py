"""The script that is run on a GPU for minutes only: it must not be there that it breaks."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

BENCH = Path(__file__).parents[2] / "bench" / "gpu.py"

TESTS = """
from pathlib import Path
import time

import pytest

def test_good():
    pass

def test_bad():
    assert 1 == 2, "that is wrong"

@pytest.fixture
def broken():
    raise RuntimeError("no fixture")

def test_without_its_fixture(broken):
    pass

@pytest.mark.slow
def test_rehearsal():
    raise RuntimeError("not on a GPU")

def test_that_does_not_end():
    while not Path("end").exists():
        time.sleep(0.1)
    time.sleep(2)
"""


@pytest.fixture(scope="module")
def bench() -> Any:
    found = importlib.util.spec_from_file_location("gpu_bench", BENCH)
    assert found is not None
    assert found.loader is not None
    module = sys.modules["gpu_bench"] = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


def _visit(bench: Any, folder: Path) -> Any:
    return bench.Visit(torch.device("cpu"), False, folder / "gpu.json", float("inf"), None)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_stages_run_on_a_cpu_with_a_tiny_model(tmp_path: Path) -> None:
    """Those that know the engine best, and the farm around it."""
    wanted = ["sweep-256", "farm-256"]
    command = [sys.executable, str(BENCH), "--rehearse", "--seconds", "500", "--only", *wanted]
    subprocess.run([*command, "--out", str(tmp_path)], check=True, timeout=540)
    stages = json.loads((tmp_path / "gpu-rehearsal.json").read_text())["stages"]
    assert stages.keys() == set(wanted)
    for found in stages.values():
        assert "error" not in found
        assert "left_out" not in found
    assert stages["farm-256"]["images_per_second"] > 0
    spent = stages["farm-256"]["worker_s_by_thread"].values()
    assert max(spent) > 0


def test_tests_that_run_out_of_time_tell_what_has_failed(
    bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tests" / "gpu").mkdir(parents=True)
    (tmp_path / "tests" / "gpu" / "test_some.py").write_text(TESTS)
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = slow: long\n")
    monkeypatch.setattr(bench, "ROOT", tmp_path)
    monkeypatch.setattr(bench, "LAST_WORDS", 100)
    monkeypatch.setattr(bench.os, "cpu_count", lambda: 1)
    visit, found = _visit(bench, tmp_path), dict[str, Any]()
    visit.found["tests"] = found
    saved: dict[str, int] = {}

    def left(_: Any) -> float:
        if visit.file.exists():
            saved.update(json.loads(visit.file.read_text())["tests"]["counts"])
        if saved != {"PASSED": 1, "FAILED": 1, "ERROR": 1}:
            return 200
        (tmp_path / "end").touch()
        return 0

    monkeypatch.setattr(bench.Visit, "left", property(left))
    bench.gpu_tests(visit, found)
    assert found["status"] == "out of time"
    assert {line.split("::")[1] for line in found["failed"]} == {
        "test_bad - AssertionError: that is wrong",
        "test_without_its_fixture - RuntimeError: no fixture",
    }
    assert found["summary"].startswith("1 failed, 1 passed, 1 error in ")
    assert "E   AssertionError: that is wrong" in found["output"]


def test_stages_come_in_the_order_asked_for_whatever_breaks(
    bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A device that has failed raises wherever it is waited for, also between two stages."""
    monkeypatch.setattr(bench, "machine", lambda _: {})
    visit, ran = _visit(bench, tmp_path), list[str]()

    def run(visit: Any, found: dict[str, Any]) -> None:
        ran.append(next(reversed(visit.found["stages"])))
        found["measured"] = 1

    def clean(_: Any) -> None:
        raise RuntimeError("an illegal memory access was encountered")

    stages = [bench.Stage(one.name, one.seconds, run) for one in bench.stages()]
    monkeypatch.setattr(bench, "stages", lambda: stages)
    monkeypatch.setattr(bench.Visit, "clean", clean)
    bench.perform(visit, ["tests", "sweep", "te"])
    assert ran == ["tests", "sweep-256", "sweep-512"]
    for found in json.loads(visit.file.read_text())["stages"].values():
        assert found["measured"] == 1
        assert "illegal memory access" in found["error"]
