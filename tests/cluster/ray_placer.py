"""The scheduler's process that talks to Ray, and its workers, with a fake engine."""

import os
import sys
from collections.abc import Mapping
from pathlib import Path

sys.path += [str(Path(__file__).parent), str(Path(__file__).parents[1])]

from fake_engine import INFO
from worker_process import NotingEngine

from farm.checkpoints.inspect import Checkpoint
from farm.cli import place_workers
from farm_workers.worker import worker as worker_module
from farm_workers.worker.ray_actor import WorkerActor


class FakeWorkerActor(WorkerActor):
    """The real actor; its class reaches Ray's processes by this module's name."""

    def __init__(self, worker: str, environment: Mapping[str, str], fingerprint: str) -> None:
        worker_module.inspect_checkpoint = lambda _: Checkpoint(  # type: ignore[attr-defined]
            path=Path("/"), info=INFO
        )
        worker_module._load_engine = lambda *_: NotingEngine(rows=4, step_seconds=0.02)
        if trace := environment.get("FARM_TRACE"):
            os.environ |= {"FINISHED": f"{trace}.finished", "HELD": f"{trace}.held"}
        super().__init__(worker, environment, fingerprint)


if __name__ == "__main__":
    from ray_placer import FakeWorkerActor as Importable

    os.environ["FARM_CHECKPOINTS"] = "fake"
    place_workers.WorkerActor = Importable  # type: ignore[misc]
    place_workers.main()
