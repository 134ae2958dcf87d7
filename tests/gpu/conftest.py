"""What needs a GPU is skipped where there is none; the kernels are not."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.append(str(Path(__file__).parents[1] / "engine"))  # its cases and its oracle


@pytest.fixture
def device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"
