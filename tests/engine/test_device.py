"""What people are told of the device that an engine draws on, and how it is left."""

import contextlib
from typing import Any

import pytest
import torch

from farm_workers.engine.device import Device


def test_a_cpu_has_no_number() -> None:
    assert Device("cpu").label == "CPU"


@pytest.mark.parametrize(
    ("visible", "index", "told"),
    [
        (None, 1, "GPU 1, a card"),
        ("", 1, "GPU 1, a card"),
        ("6,3", 1, "GPU 3, a card"),
        ("5", 0, "GPU 5, a card"),
    ],
)
def test_a_gpu_has_the_number_that_it_has_on_its_machine(
    visible: str | None, index: int, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "a card")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert Device(f"cuda:{index}").label == told


def test_what_a_process_says_of_kernels_changes_no_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    """A notebook may let cuDNN time its kernels; another one each time would give other bits."""
    monkeypatch.setattr(torch.cuda, "device", lambda _: contextlib.nullcontext())
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32  # no attribute that monkeypatch could put back: it has no dictionary
    for name, value in (("allow_tf32", True), ("deterministic", False), ("benchmark", True)):
        monkeypatch.setattr(cudnn, name, value)
    try:
        matmul.allow_tf32 = True
        with Device("cuda:0").scope():
            assert not matmul.allow_tf32
            assert not cudnn.allow_tf32
            assert not cudnn.benchmark
            assert cudnn.deterministic
        assert matmul.allow_tf32
        assert cudnn.allow_tf32
        assert cudnn.benchmark
        assert not cudnn.deterministic
    finally:
        matmul.allow_tf32 = before


class FakeStream:
    device = torch.device("cuda:0")

    def __init__(self, *_: Any) -> None:
        return None

    def wait_stream(self, _: Any) -> None:
        return None


class FailingGraph:
    """As torch's where something in the function may not be captured."""

    def capture_begin(self, *_: Any, **__: Any) -> None:
        return None

    def capture_end(self) -> None:
        raise RuntimeError("CUDA error: operation failed due to a previous error during capture")


@pytest.mark.parametrize("error", [None, RuntimeError("not permitted"), torch.OutOfMemoryError()])
def test_a_capture_that_fails_leaves_the_stream_of_its_caller(
    error: RuntimeError | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    callers = FakeStream()
    current = [callers]
    for name, fake in {
        "Stream": FakeStream,
        "CUDAGraph": FailingGraph,
        "current_stream": lambda *_: current[0],
        "set_stream": lambda one: current.__setitem__(0, one),
        "is_available": lambda: True,
        "current_device": lambda: 0,
        "graph_pool_handle": lambda: (0, 0),
        "synchronize": lambda: None,
        "empty_cache": lambda: None,
    }.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    monkeypatch.setattr(torch._C, "_host_emptyCache", lambda: None, raising=False)
    calls: list[Any] = []

    def function() -> None:
        calls.append(current[0])
        if len(calls) == 4 and error is not None:
            raise error

    device = Device("cuda:0")
    assert device.capture(function) is function
    assert len(calls) == 4
    assert callers not in calls
    assert current == [callers]
