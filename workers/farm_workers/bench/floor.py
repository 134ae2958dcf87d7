"""The arithmetic that a picture cannot do without, from its checkpoint's configuration alone.

A counter of operators cannot see into a replayed CUDA graph; these are the counts that it gives
for an eager step, so a share of the floor means the same on every device.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from farm_workers.engine.amused.vq import VqModel


def step_flops(config: Mapping[str, Any], text_tokens: int, grid: tuple[int, int]) -> float:
    """FLOPs of one denoising step of one half of a guided row; a product counts twice its sizes.

    ``config`` is UVit2DModel's, ``grid`` the row's token rows and columns. Keys and values of the
    prompt are not counted, because they are computed once for all steps, and the first block up
    to its modulation counts half, because both halves share it.
    """
    tokens = grid[0] * grid[1]
    inner = tokens // 4 if config["downsample"] else tokens
    hidden, width = config["hidden_size"], config["block_out_channels"]
    layer = 2 * inner * (6 * hidden**2 + 3 * hidden * config["intermediate_size"])
    layer += 4 * inner * hidden * (inner + text_tokens)
    pair = 2 * inner * 12 * width**2 + 8 * inner * text_tokens * width
    shared = 2 * inner * 8 * width**2 if config["num_res_blocks"] else 0
    resample = 2 * inner * 4 * width**2  # a 2 x 2 convolution, there and back
    flops = config["num_hidden_layers"] * layer + 2 * config["num_res_blocks"] * pair
    flops += 2 * inner * 2 * width * hidden - shared / 2
    flops += (resample / 2 if config["downsample"] else 0) + (resample if config["upsample"] else 0)
    head = 2 * tokens * width * (config["in_channels"] + config["codebook_size"])
    return float(flops + head)


def decode_flops(config: Mapping[str, Any], grid: tuple[int, int]) -> float:
    """FLOPs of a VQ model's decoder for one picture of ``grid`` tokens; nothing is computed."""
    with torch.device("meta"):
        model = VqModel(config)
    codes = torch.zeros(1, config["latent_channels"], *grid, device="meta")
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        model.decoder(model.post_quant_conv(codes))
    return float(counter.get_total_flops())
