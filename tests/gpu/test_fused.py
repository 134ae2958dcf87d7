"""A GPU's way through the model, whole: beside a CPU's, and in Triton's interpreter without one."""

from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from adapter_files import adapted, random_file
from cases import Case, draw, random_case, row_of
from needs import needs_kernels
from torch import Tensor

from farm.checkpoints.inspect import inspect_checkpoint
from farm_workers.engine import Engine
from farm_workers.engine.amused import AmusedModel
from farm_workers.engine.amused.parts import load_parts
from farm_workers.engine.device import Device
from farm_workers.engine.row import Pending
from farm_workers.testing.tiny import make_tiny

pytestmark = needs_kernels

CONFIGURATIONS: list[dict[str, Any]] = [
    {"num_hidden_layers": 1},
    {"num_hidden_layers": 2, "downsample": True, "use_bias": True, "num_res_blocks": 2},
    {"num_hidden_layers": 1, "block_out_channels": 128, "hidden_size": 128, "block_num_heads": 4},
    {"num_hidden_layers": 1, "ln_elementwise_affine": False},
]


@pytest.fixture(scope="module", params=range(len(CONFIGURATIONS)))
def models(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[AmusedModel, AmusedModel]:
    """The exact model on a CPU, and the fused one where this machine can run it."""
    path = tmp_path_factory.mktemp("tiny")
    make_tiny(path, **CONFIGURATIONS[request.param])
    return _model(path, "cpu", fused=False), _model(path, _device(), fused=True)


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def _model(path: Path, device: str, *, fused: bool) -> AmusedModel:
    checkpoint, target = inspect_checkpoint(path), Device(device)
    parts = load_parts(checkpoint, target.torch, torch.float32)
    with torch.inference_mode(), target.scope():
        return AmusedModel(checkpoint.info, parts, target, torch.float32, fused=fused)


def _pending(model: AmusedModel, **request: Any) -> Pending:
    return Pending(0, row_of(model.info, **request), False, None, None, None, None)


@torch.inference_mode()
def test_conditioning(models: tuple[AmusedModel, AmusedModel]) -> None:
    exact, fused = models
    rows = [_pending(exact, prompt=f"picture {number}", guidance_scale=4) for number in range(3)]
    with fused.device.scope():
        for row in rows:
            for one, other in zip(
                exact.condition(row), fused.condition(row, rows[1:]), strict=True
            ):
                torch.testing.assert_close(one.packed, other.packed.cpu(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("grid", [(4, 2)])
@torch.inference_mode()
def test_scores(models: tuple[AmusedModel, AmusedModel], grid: tuple[int, int]) -> None:
    exact, fused = models
    noise = torch.Generator().manual_seed(3)
    tokens = torch.randint(exact.info.vocab_size, (3, grid[0] * grid[1]), generator=noise)
    packed = 0.5 * torch.randn(3, 1, exact.conditioning_size, generator=noise)

    def scores(model: AmusedModel) -> Tensor:
        with model.device.scope():
            where = model.device.torch
            given = model.bind(packed.to(where))
            return model.logits(model.forward(tokens.to(where), given, grid)).cpu()

    torch.testing.assert_close(scores(fused), scores(exact), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("models", [0], indirect=True)  # they have the same VQ model
@torch.inference_mode()
def test_pictures(models: tuple[AmusedModel, AmusedModel]) -> None:
    exact, fused = models
    noise = torch.Generator().manual_seed(3)
    tokens = torch.randint(exact.info.codebook_size, (3, 2 * 3), generator=noise)
    expected = exact.decode(tokens, (2, 3), width=1).int()
    with fused.device.scope():
        found = fused.decode(tokens.to(fused.device.torch), (2, 3), width=2).cpu().int()
        codes = fused.encode(expected[0].numpy().astype(np.uint8)).cpu()
    assert int((found - expected).abs().max()) <= 1
    assert float((found != expected).float().mean()) < 0.02
    same = codes == exact.encode(expected[0].numpy().astype(np.uint8))
    assert float(same.float().mean()) > 0.9


def test_the_whole_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a GPU a graph is the function itself, with a graph's inputs and outputs."""
    make_tiny(tmp_path, num_hidden_layers=1, hidden_size=64, codebook_size=256, size=16, seed=3)
    exact = Engine.load(tmp_path, threads=1)
    model = _model(tmp_path, _device(), fused=True)
    if not model.device.is_cuda:
        monkeypatch.setattr(Device, "capture", lambda device, function: function)
        model.device.graphs = True
    fused = Engine(model, tile=2)
    assert model.codec._tile._graphs
    random = Random(31)  # small pictures of few steps: kernels are slow without a GPU
    cases = [
        random_case(random, exact.checkpoint, rng=rng, mode=mode, small=True)
        for rng, mode in (
            ("torch", "img2img"),
            ("farm-1", "inpaint"),
        )
    ]
    files = [random_file(random, exact, rank=rank) for rank in (4, 40)]
    cases[1] = adapted(exact, cases[1], (files[1], 0.5), (files[0], -1.0))
    urgent = Case(row_of(exact.checkpoint, num_inference_steps=3))
    expected = draw(exact, *cases, urgent)
    for key, case in enumerate(cases):
        fused.add(key, case.row, **case.inputs)
    fused.add(len(cases), urgent.row, urgent=True)
    found = {}
    while not fused.idle:
        found |= {result.key: result for result in fused.step()}
    assert "tile 1" in found[len(cases)].numerics
    assert fused.numerics == found[0].numerics
    for key, result in enumerate(expected):
        assert found[key].error is None
        same = float((found[key].tokens == result.tokens).mean())
        assert same > 0.97, (key, same)
