"""The farm's forward pass beside UVit2DModel's, and each row's beside its neighbours'."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812  (torch's own name for it)
from cases import MakeCheckpoint
from torch import Tensor, nn

from farm.checkpoints.inspect import inspect_checkpoint
from farm_workers.bench.pipelines import upstream_modules
from farm_workers.engine.amused import AmusedModel
from farm_workers.engine.amused.batch import MOST_TOGETHER, by_row
from farm_workers.engine.amused.parts import load_parts
from farm_workers.engine.amused.transformer import sinusoids
from farm_workers.engine.device import Device

CPU = Device("cpu")


class AsProduct(nn.Module):
    """A 1 x 1 convolution as the matrix product that the farm makes of it."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.conv = conv

    def forward(self, x: Tensor) -> Tensor:
        channels_last = x.permute(0, 2, 3, 1).contiguous()
        flat = F.linear(channels_last, self.conv.weight.flatten(1), self.conv.bias)
        return flat.permute(0, 3, 1, 2)


class SumOfSquares(nn.Module):
    """GlobalResponseNorm with its norm as the farm computes it."""

    def __init__(self, norm: Any) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        strength = (x * x).flatten(1, 2).sum(1, keepdim=True).sqrt()[:, None]
        relative = strength / (strength.mean(dim=-1, keepdim=True) + 1e-6)
        result: Tensor = self.norm.gamma * (x * relative) + self.norm.beta + x
        return result


def _inputs(
    parts: AmusedModel, rows: int, halves: int, grid: tuple[int, int]
) -> tuple[Tensor, ...]:
    info, noise = parts.info, torch.Generator().manual_seed(rows)
    tokens = torch.randint(0, info.vocab_size, (rows, grid[0] * grid[1]), generator=noise)
    text = torch.randn(rows, halves, info.text_tokens, info.hidden_dim, generator=noise)
    pooled = torch.randn(rows, halves, info.pooled_dim, generator=noise)
    micro = torch.tensor([64.0, 80.0, 0.0, 8.0, 6.0]).expand(rows, halves, 5)
    return tokens, text, pooled, micro


@pytest.mark.parametrize(
    "arguments",
    [
        {"num_hidden_layers": 2},
        {"downsample": True},
        {"num_hidden_layers": 1, "block_out_channels": 256, "use_bias": True},
    ],
)
@pytest.mark.parametrize("halves", [1, 2])
@pytest.mark.parametrize("grid", [(8, 8), (4, 6), (12, 16)])
@torch.inference_mode()
def test_logits_are_uvit2dmodel_s(
    make_checkpoint: MakeCheckpoint, arguments: Any, halves: int, grid: tuple[int, int]
) -> None:
    """Close as it stands; bit for bit once it takes two of the farm's shortcuts.

    These are the 1 x 1 convolutions as matrix products, which lets masked tokens alone be scored
    and makes the embedding a table, and the sum of squares instead of torch.norm, which is 18
    times slower. A guided row stays close only: each of its prompts is projected by itself, which
    is what lets it be kept, where UVit2DModel multiplies both at once. So does a grid of a few
    tokens, for which the library's depthwise convolution takes another kernel.
    """
    checkpoint = inspect_checkpoint(make_checkpoint(**arguments))
    parts = load_parts(checkpoint, CPU.torch, torch.float32)
    whole = AmusedModel(checkpoint.info, parts, CPU, torch.float32)
    model, upstream = whole.transformer, upstream_modules(parts)["transformer"]
    tokens, text, pooled, micro = _inputs(whole, 3, halves, grid)
    packed = torch.stack(
        [
            torch.cat(
                [
                    model.condition(t[None], p[None], sinusoids(m, 32).reshape(1, -1))
                    for t, p, m in zip(*row, strict=True)
                ]
            )
            for row in zip(text, pooled, micro, strict=True)
        ]
    )
    features = model.features(tokens, model.layout.views(packed), grid)
    found = torch.stack([model.logits(row) for row in features])

    def expected() -> Tensor:
        rows = []
        for row in range(3):
            ids = tokens[row].view(1, *grid).expand(halves, -1, -1)
            logits = upstream(ids, text[row], pooled[row], micro[row])
            rows.append(logits.permute(0, 2, 3, 1).flatten(1, 2))
        return torch.stack(rows)

    torch.testing.assert_close(found, expected(), rtol=0, atol=1e-4)
    upstream.embed.conv = AsProduct(upstream.embed.conv)
    upstream.mlm_layer.conv1 = AsProduct(upstream.mlm_layer.conv1)
    upstream.mlm_layer.conv2 = AsProduct(upstream.mlm_layer.conv2)
    for block in (*upstream.down_block.res_blocks, *upstream.up_block.res_blocks):
        block.channelwise_norm = SumOfSquares(block.channelwise_norm)
    if halves == 1 and grid != (4, 6):
        assert torch.equal(found, expected())


@pytest.mark.parametrize("halves", [1, 2])
@torch.inference_mode()
def test_a_row_s_features_do_not_know_its_neighbours(
    make_checkpoint: MakeCheckpoint, halves: int
) -> None:
    checkpoint = inspect_checkpoint(make_checkpoint(downsample=True))
    parts = load_parts(checkpoint, CPU.torch, torch.float32)
    model = AmusedModel(checkpoint.info, parts, CPU, torch.float32).transformer
    tokens = torch.randint(0, checkpoint.info.vocab_size, (9, 6 * 10))
    packed = torch.randn(9, halves, model.layout.size)
    whole = model.features(tokens, model.layout.views(packed), (6, 10))
    for width in (1, 2, 5):
        for row in range(9 - width):
            some = slice(row, row + width)
            views = model.layout.views(packed[some])
            assert torch.equal(model.features(tokens[some], views, (6, 10)), whole[some])


@pytest.mark.parametrize("lines", [1, 5, 63, 64, 81])
@pytest.mark.parametrize(("inputs", "outputs"), [(24, 40), (64, 1024), (256, 128), (700, 48)])
def test_a_product_by_row_has_the_bits_of_each_row_alone(
    lines: int, inputs: int, outputs: int
) -> None:
    noise = torch.Generator().manual_seed(lines)
    weight = torch.randn(outputs, inputs, generator=noise)
    for bias in (None, torch.randn(outputs, generator=noise)):
        for rows in (2, 3, 8):
            x = torch.randn(rows, 2, lines, inputs, generator=noise)
            found = by_row(F.linear, x, weight, bias)
            for row, own in zip(x.split(1), found.split(1), strict=True):
                assert torch.equal(F.linear(row.clone(), weight, bias), own)


@pytest.mark.parametrize(("channels", "together"), [(4, True), (MOST_TOGETHER, False)])
def test_rows_share_a_call_where_that_leaves_their_bits_and_they_are_small(
    channels: int, together: bool
) -> None:
    calls = []

    def doubled(x: Tensor) -> Tensor:
        calls.append(len(x))
        return x * 2

    x = torch.rand(4, channels)
    first, second = by_row(doubled, x), by_row(doubled, x)
    assert torch.equal(first, x * 2)
    assert torch.equal(second, x * 2)
    tried = [1, 1, 1, 1, 4] if together else []
    assert calls == tried + (2 * [4] if together else 8 * [1])


def test_rows_do_not_share_a_call_whose_bits_follow_from_their_number() -> None:
    x = torch.rand(3, 5)
    found = by_row(lambda part: part + 1e-6 * len(part), x)
    assert torch.equal(found, x + 1e-6)
