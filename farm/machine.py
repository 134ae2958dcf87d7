"""What this machine lets this process use."""

import os
from pathlib import Path


def cores() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def worker_threads(workers: int = 1) -> int:
    """Threads for the arithmetic of one of so many workers; a core is left for everything else.

    The number is a part of the numerics class, so ``farm render`` takes the same as one worker.
    """
    return max((cores() - 1) // workers, 1)


def count_gpus() -> int:
    """Nvidia GPUs that this process may use; asked without loading torch."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([name for name in visible.split(",") if name.strip() not in ("", "-1")])
    return len(list(Path("/proc/driver/nvidia/gpus").glob("*")))
