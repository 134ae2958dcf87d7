"""An engine for this machine: what is left to ``auto`` is decided here."""

from typing import TYPE_CHECKING, Literal, get_args

from farm.checkpoints.inspect import Checkpoint
from farm.machine import worker_threads

if TYPE_CHECKING:
    from farm_workers.engine.engine import Engine

Attention = Literal["auto", "math", "flash", "mem_efficient", "cudnn"]
KERNELS = get_args(Attention)[1:]
# Guided rows that step together. On a CPU more than four save no time and keep urgent rows waiting.
DEFAULT_TILE = {"cpu": 4, "cuda": 32}


def check_loads(checkpoint: Checkpoint) -> None:
    """Raises ``InvalidCheckpoint`` where ``load_engine`` would; takes torch, and no weights.

    Raises:
        ImportError: the workers' libraries are not installed.
    """
    from farm_workers.engine.amused.parts import describe_parts

    describe_parts(checkpoint)


def load_engine(
    checkpoint: Checkpoint,
    *,
    device: str = "auto",
    dtype: str = "auto",
    rows: int = 0,
    tile: int = 0,
    threads: int = 0,
    attention: Attention = "auto",
) -> "Engine":
    """Load a checkpoint; zeros and ``auto`` stand for what suits the device.

    ``attention`` leaves torch one kernel for attention, for this process: another one may be faster
    and rounds differently, so it is a part of the numerics class.
    """
    import torch

    from farm_workers.engine.engine import Engine

    if attention != "auto":
        for kernel in KERNELS:
            getattr(torch.backends.cuda, f"enable_{kernel}_sdp")(kernel == attention)
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    kind = torch.device(device).type
    if dtype == "auto":
        dtype = "float32" if kind == "cpu" else "bfloat16"
    engine = Engine.load(
        checkpoint,
        device=device,
        dtype=dtype,
        rows=rows or None,
        tile=tile or DEFAULT_TILE[kind],
        threads=threads or worker_threads(),
    )
    if attention != "auto":
        engine.numerics += f"; attention {attention}"
    return engine
