"""Pictures to tokens and back, through the VQ model."""

import copy
from collections.abc import Collection
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812  (torch's own name for it)
from numpy.typing import NDArray
from torch import Tensor, nn

from farm_workers.engine.amused.vq import VqModel
from farm_workers.engine.device import Device, Shaped


class Codec:
    """Decodes pictures of one size together, always as many on a GPU; one by one on a CPU."""

    def __init__(self, vqvae: VqModel, device: Device, dtype: torch.dtype, *, fused: bool) -> None:
        self._device = device
        self._channels_last = fused
        # A code is a nearest neighbour, so pictures become tokens in float32 whatever the rest
        # runs in, by convolutions in TF32 where the rest has no more precision than that; without
        # it cuDNN takes ten times as long for 512 x 512. float16 overflows in the decoder. Each
        # part keeps its type: casting a shared module would change it under another call.
        self._encoder = _as(vqvae.encoder, torch.float32)
        self._tf32 = dtype is not torch.float32
        self._quant = _as(vqvae.quant_conv, torch.float32)
        self._codebook = vqvae.codebook.float()
        self._decode_dtype = torch.float32 if dtype is torch.float16 else dtype
        self._decoder = _as(vqvae.decoder, self._decode_dtype)
        self._post_quant = _as(vqvae.post_quant_conv, self._decode_dtype)
        self._codes, self._tile = Shaped(device, self._encoded), Shaped(device, self._decoded)
        if fused:
            self._encoder = _fused(_nhwc(self._encoder))
            self._decoder = _fused(_nhwc(self._decoder))

    def encode(self, image: NDArray[np.uint8]) -> Tensor:
        """One picture (height, width, 3) to its token ids (tokens,), on the device."""
        pixels = self._device.upload(torch.from_numpy(np.array(image, dtype=np.float32)))
        return self._codes(pixels)[0].clone()

    def _encoded(self, pixels: Tensor) -> Tensor:
        pixels = (pixels[None] / 255.0).permute(0, 3, 1, 2)
        # They stay as diffusers' preprocessing leaves them, channels last: elsewhere a CPU's
        # convolutions take another way, and a code near the middle flips.
        with self._device.tf32(self._tf32):
            latents = self._quant(self._encoder(pixels))
        points = latents.permute(0, 2, 3, 1).flatten(0, 2)
        return torch.cdist(points, self._codebook).argmin(1)

    def decode(self, tokens: Tensor, grid: tuple[int, int], *, width: int) -> Tensor:
        """(pictures, tokens) to uint8 (pictures, height, width, 3), still on the device.

        ``width`` pictures go through the decoder at a time, copies of the last one if need be.
        """
        pictures = []
        for tile in tokens.split(width):
            missing = width - len(tile)
            padded = torch.cat([tile, tile[-1:].expand(missing, -1)]) if missing else tile
            (pixels,) = self._tile(padded.unflatten(1, grid))
            pictures.append(pixels[: len(tile)].clone())
        return torch.cat(pictures)

    def capture(self, grid: tuple[int, int], pixel_factor: int, widths: Collection[int]) -> None:
        """CUDA graphs for pictures of that size: of one to encode, of so many to decode."""
        device, (height, width) = self._device.torch, (side * pixel_factor for side in grid)
        self._codes.capture(torch.zeros(height, width, 3, device=device))
        for count in widths:
            self._tile.capture(torch.zeros(count, *grid, dtype=torch.int64, device=device))

    def _decoded(self, tokens: Tensor) -> Tensor:
        codes = F.embedding(tokens, self._codebook).permute(0, 3, 1, 2)
        codes = codes.to(self._decode_dtype)
        if not self._channels_last:
            codes = codes.contiguous()
        pixels: Tensor = self._decoder(self._post_quant(codes))
        pixels = (pixels.float().clamp(0, 1) * 255).round().to(torch.uint8)
        return pixels.permute(0, 2, 3, 1).contiguous()


def _nhwc(module: Any) -> Any:
    """A copy: the norms and the memory format of the caller's model stay as they are."""
    return copy.deepcopy(module).to(memory_format=torch.channels_last)


def _fused(half: nn.Module) -> Any:
    # Here and not above: Triton is made for Linux only.
    from farm_workers.engine.amused.kernels import fuse

    return fuse(half)


def _as(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """The module itself where its type fits already, else a copy of its own."""
    if next(module.parameters()).dtype == dtype:
        return module
    return copy.deepcopy(module).to(dtype)
