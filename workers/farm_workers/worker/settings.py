"""What a worker must be told, read once at its start."""

from pathlib import Path
from typing import Literal

from pydantic import Field

from farm.settings import FarmSettings, Names
from farm_workers.worker.load_engine import Attention


class WorkerSettings(FarmSettings):
    """Environment variables carry the prefix ``FARM_``, but for ``REDIS_URL``."""

    checkpoints: Names
    device: str = "auto"
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    attention: Attention = "auto"
    rows: int = Field(default=0, ge=0, le=4096)  # of an engine; 0: the device's default
    tile: int = Field(default=0, ge=0, le=256)  # rows per tile; 0: the device's default
    threads: int = Field(default=0, ge=0, le=512)  # torch's; 0: all cores but one
    lease_ms: int = Field(default=10_000, ge=1_000, le=600_000)
    drain_seconds: float = Field(default=20.0, ge=0)  # after SIGTERM, for what can be finished
    step_deadline_seconds: float = Field(default=300.0, gt=0)
    run_dir: Path | None = None  # where the pid file goes
    log_dir: Path | None = None  # where a worker on Ray writes its log too
    trace: Path | None = None  # gets a line for each row that an engine starts, for tests
    faults: Names = ()  # planted in the engines, for tests: see farm_workers.testing.faults
    stub: bool = False  # engines that draw nothing, for measurements: testing.stub_engine
