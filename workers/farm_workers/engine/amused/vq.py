"""The VQ model between pictures and codes, under the names and with the bits of diffusers' VQModel.

Only the kind that aMUSEd has: residual blocks with group norms and SiLU, no attention (``Encoder``
and ``Decoder`` of diffusers' ``models/autoencoders/vae.py``; van den Oord et al., NeurIPS 2017).
"""

from collections.abc import Iterable, Mapping
from typing import Any

import torch.nn.functional as F  # noqa: N812  (torch's own name for it)
from torch import Tensor, nn

from farm_workers.engine.amused.layers import embedding

EPS = 1e-6  # of every group norm
LARGE_BATCH = 64  # from which diffusers leaves the channels-last kernel that doubles a picture


class VqModel(nn.Module):
    """Raises ValueError for a configuration of another kind."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        _check(config)
        latent = config["latent_channels"]
        width = config.get("vq_embed_dim") or latent
        self.encoder = Encoder(config)
        self.quant_conv = nn.Conv2d(latent, width, 1)
        self.quantize = nn.ModuleDict({"embedding": embedding(config["num_vq_embeddings"], width)})
        self.post_quant_conv = nn.Conv2d(width, latent, 1)
        self.decoder = Decoder(config)

    @property
    def codebook(self) -> Tensor:
        """(codes, channels)."""
        return self.quantize["embedding"].weight  # type: ignore[return-value]


def _check(config: Mapping[str, Any]) -> None:
    levels = len(config["block_out_channels"])
    for key, known, otherwise in (
        ("norm_type", ("group",), "group"),
        ("act_fn", ("silu", "swish"), "silu"),
        ("mid_block_add_attention", (False,), True),
        ("down_block_types", (["DownEncoderBlock2D"] * levels,), None),
        ("up_block_types", (["UpDecoderBlock2D"] * levels,), None),
    ):
        if (value := config.get(key, otherwise)) not in known:
            raise ValueError(f"{key} is {value!r}; aMUSEd has {known[0]!r}")


class Encoder(nn.Module):
    """Pictures (pictures, 3, height, width) to latents, one for each code."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        channels, groups = config["block_out_channels"], config["norm_num_groups"]
        self.conv_in = nn.Conv2d(config["in_channels"], channels[0], 3, padding=1)
        self.down_blocks = nn.ModuleList()
        for level, (source, width) in enumerate(_pairs(channels)):
            block = Block(source, width, config["layers_per_block"], groups)
            if level < len(channels) - 1:
                block.downsamplers = nn.ModuleList([Halve(width)])
            self.down_blocks.append(block)
        self.mid_block = Block(channels[-1], channels[-1], 2, groups)
        self.conv_norm_out = nn.GroupNorm(groups, channels[-1], EPS)
        self.conv_act = nn.SiLU()
        self.conv_out = nn.Conv2d(channels[-1], config["latent_channels"], 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for block in self.down_blocks:
            x = block(x)
        out: Tensor = self.conv_out(self.conv_act(self.conv_norm_out(self.mid_block(x))))
        return out


class Decoder(nn.Module):
    """Latents to pictures (pictures, 3, height, width)."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        channels, groups = config["block_out_channels"][::-1], config["norm_num_groups"]
        self.conv_in = nn.Conv2d(config["latent_channels"], channels[0], 3, padding=1)
        self.mid_block = Block(channels[0], channels[0], 2, groups)
        self.up_blocks = nn.ModuleList()
        for level, (source, width) in enumerate(_pairs(channels)):
            block = Block(source, width, config["layers_per_block"] + 1, groups)
            if level < len(channels) - 1:
                block.upsamplers = nn.ModuleList([Double(width)])
            self.up_blocks.append(block)
        self.conv_norm_out = nn.GroupNorm(groups, channels[-1], EPS)
        self.conv_act = nn.SiLU()
        self.conv_out = nn.Conv2d(channels[-1], config["out_channels"], 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.mid_block(self.conv_in(x))
        for block in self.up_blocks:
            x = block(x)
        out: Tensor = self.conv_out(self.conv_act(self.conv_norm_out(x)))
        return out


def _pairs(channels: list[int]) -> Iterable[tuple[int, int]]:
    """What goes into each level and what comes out."""
    return zip([channels[0], *channels], channels, strict=False)


class Block(nn.Module):
    """The residual blocks of one resolution, and a change of it after them."""

    def __init__(self, source: int, width: int, count: int, groups: int) -> None:
        super().__init__()
        sources = [source, *[width] * (count - 1)]
        self.resnets = nn.ModuleList([Resnet(one, width, groups) for one in sources])
        self.downsamplers = self.upsamplers = nn.ModuleList()

    def forward(self, x: Tensor) -> Tensor:
        for layer in (*self.resnets, *self.downsamplers, *self.upsamplers):
            x = layer(x)
        return x


class Resnet(nn.Module):
    """diffusers' ResnetBlock2D without a time embedding."""

    def __init__(self, source: int, width: int, groups: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, source, EPS)
        self.conv1 = nn.Conv2d(source, width, 3, padding=1)
        self.norm2 = nn.GroupNorm(groups, width, EPS)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        self.conv_shortcut = nn.Conv2d(source, width, 1) if source != width else None

    def forward(self, x: Tensor) -> Tensor:
        inner = self.conv1(F.silu(self.norm1(x)))
        inner = self.conv2(F.silu(self.norm2(inner)))
        out: Tensor = (x if self.conv_shortcut is None else self.conv_shortcut(x)) + inner
        return out


class Halve(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(F.pad(x, (0, 1, 0, 1)))
        return out


class Double(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        if len(x) >= LARGE_BATCH or 2 * x.numel() > 2**31:
            x = x.contiguous()
        out: Tensor = self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        return out
