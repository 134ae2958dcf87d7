"""What a test needs to run; without a GPU the kernels run in Triton's interpreter."""

import importlib.util
import os

import pytest
import torch

GPU = torch.cuda.is_available()
TRITON = importlib.util.find_spec("triton") is not None
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"

needs_gpu = pytest.mark.skipif(not GPU, reason="no GPU")
needs_kernels = pytest.mark.skipif(
    not TRITON or not (GPU or INTERPRETED), reason="neither Triton on a GPU nor its interpreter"
)
