"""What this machine lets this process use."""

import os
from pathlib import Path


def cores() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def worker_threads(workers: int = 1) -> int:
    """Threads for the arithmetic of one of so many workers; one core is left for everything else.

    The number is a part of the numerics class, so ``farm render`` takes the same as one worker.
    """
    return max((cores() - 1) // workers, 1)


def count_gpus() -> int:
    """Nvidia GPUs that this process may use; asked without loading torch.

    ``CUDA_VISIBLE_DEVICES`` chooses among those that are there and makes none.
    """
    there = max(
        len(list(Path("/proc/driver/nvidia/gpus").glob("*"))),
        len(list(Path("/dev").glob("nvidia[0-9]*"))),
        int(Path("/dev/dxg").exists()),  # Windows' subsystem for Linux
    )
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return there
    names = [name.strip() for name in visible.split(",")]
    if "-1" in names:
        names = names[: names.index("-1")]
    named = [name for name in names if name]
    if any("MIG" in name.upper() for name in named):  # parts of a GPU
        return len(named) if there else 0
    return min(len(named), there)
