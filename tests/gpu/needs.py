"""What a test needs to run; the kernels also run in Triton's interpreter on a CPU."""

import os

import pytest
import torch

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
needs_kernels = pytest.mark.skipif(
    not torch.cuda.is_available() and not INTERPRETED, reason="no GPU, and no TRITON_INTERPRET=1"
)
