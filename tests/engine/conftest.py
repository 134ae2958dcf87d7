"""What engine tests share: small checkpoints with random weights, one thread, engines on them."""

import os
from pathlib import Path

# Before torch loads its threads: those that wait must not spin on a busy machine's cores.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import pytest
import torch
from cases import MakeCheckpoint

from farm_workers.engine import Engine
from farm_workers.testing.tiny import make_tiny

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def make_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> MakeCheckpoint:
    """A checkpoint by its arguments; the same arguments share one directory."""
    made: dict[str, Path] = {}

    def make(**arguments: object) -> Path:
        name = repr(sorted(arguments.items()))
        if name not in made:
            made[name] = tmp_path_factory.mktemp("checkpoint")
            make_tiny(made[name], **arguments)  # type: ignore[arg-type]
        return made[name]

    return make


@pytest.fixture(scope="session")
def checkpoint(make_checkpoint: MakeCheckpoint) -> Path:
    return make_checkpoint(num_hidden_layers=1)


@pytest.fixture(scope="session")
def loaded(checkpoint: Path) -> Engine:
    return Engine.load(checkpoint, threads=1)


@pytest.fixture
def engine(loaded: Engine) -> Engine:
    """The session's engine, empty."""
    assert loaded.idle
    return loaded
