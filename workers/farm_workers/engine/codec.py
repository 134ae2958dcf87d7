"""Pictures to tokens and back, through the VQ model."""

import copy

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812  (torch's own name for it)
from numpy.typing import NDArray
from torch import Tensor, nn

from farm_workers.engine.checkpoint import Parts

TILE_TOKENS = 8192  # that are decoded together at most: the pictures' memory grows with them


class Codec:
    """Pictures of one size are decoded together, always as many; one by one on a CPU."""

    def __init__(self, parts: Parts, *, width: int) -> None:
        self._width = 1 if parts.device.type == "cpu" else width
        self._device, self._vqvae = parts.device, parts.vqvae
        # A code is a nearest neighbour, so pictures become tokens in float32 whatever the rest
        # runs in; float16 overflows in the decoder. Each part keeps its type: casting a shared
        # module to and fro would change it under another call.
        exact = parts.dtype is torch.float16
        self._encoder = _as(parts.vqvae.encoder, torch.float32)
        self._quant = _as(parts.vqvae.quant_conv, torch.float32)
        self._codebook = parts.vqvae.quantize.embedding.weight.float()
        self._decode_dtype = torch.float32 if exact else parts.dtype
        self._decoder = _as(parts.vqvae.decoder, self._decode_dtype)
        self._post_quant = _as(parts.vqvae.post_quant_conv, self._decode_dtype)
        if parts.device.type == "cuda":
            self._decoder = self._decoder.to(memory_format=torch.channels_last)

    def encode(self, image: NDArray[np.uint8]) -> Tensor:
        """One picture (height, width, 3) to its token ids (tokens,)."""
        pixels = torch.from_numpy(np.array(image, dtype=np.float32))[None] / 255.0
        pixels = pixels.permute(0, 3, 1, 2).contiguous().to(self._device)
        latents = self._quant(self._encoder(pixels))
        points = latents.permute(0, 2, 3, 1).flatten(0, 2)
        return torch.cdist(points, self._codebook).argmin(1)

    def width(self, grid: tuple[int, int]) -> int:
        """Pictures of a tile: fewer large ones, by a fixed rule."""
        return max(min(self._width, TILE_TOKENS // (grid[0] * grid[1])), 1)

    def decode(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        """(rows, tokens) to uint8 (rows, height, width, 3), still on the device."""
        pictures, width = [], self.width(grid)
        for tile in tokens.split(width):
            missing = width - len(tile)
            padded = torch.cat([tile, tile[-1:].expand(missing, -1)]) if missing else tile
            pictures.append(self._tile(padded, grid)[: len(tile)])
        return torch.cat(pictures)

    def _tile(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        codes = F.embedding(tokens, self._codebook).unflatten(1, grid).permute(0, 3, 1, 2)
        codes = codes.to(self._decode_dtype)
        if self._device.type == "cpu":
            codes = codes.contiguous()
        spatial = codes if self._vqvae.config.norm_type == "spatial" else None
        pixels = self._decoder(self._post_quant(codes), spatial)
        pixels = (pixels.float().clamp(0, 1) * 255).round().to(torch.uint8)
        return pixels.permute(0, 2, 3, 1).contiguous()


def paste(picture: Tensor, whole: Tensor, painted: Tensor, grid: tuple[int, int]) -> Tensor:
    """An inpainted picture (height, width, 3) with all but its painted cells from ``whole``.

    The tokens there are the input's. What the decoder makes of them is not, because its norms see
    the whole picture, so ``whole`` is the input's own tokens, decoded. ``painted`` is (tokens,).
    """
    cells = painted.to(picture.device).unflatten(0, grid)
    for dim in (0, 1):
        cells = cells.repeat_interleave(picture.shape[dim] // grid[dim], dim)
    return torch.where(cells[..., None], picture, whole)


def _as(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """The module itself where its type fits already, else a copy of its own."""
    if next(module.parameters()).dtype == dtype:
        return module
    return copy.deepcopy(module).to(dtype)
