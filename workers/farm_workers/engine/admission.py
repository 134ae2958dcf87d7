"""How a row starts: which tokens it begins with and which of them are masked."""

from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from farm.errors import InvalidInput
from farm.spec import CheckpointInfo, Mode, RenderSpec, Row
from farm_workers.engine.codec import Codec
from farm_workers.engine.rng import Draws, draws
from farm_workers.engine.sampler import Schedule, mask_ratio, schedule


@dataclass(eq=False)
class Pending:
    """A row that waits for a slot, with the inputs that its spec only names."""

    key: Hashable
    row: Row
    urgent: bool
    image: NDArray[np.uint8] | None
    mask: NDArray[np.uint8] | None
    latents: NDArray[Any] | None
    embeds: Any | None

    @property
    def cost(self) -> float:
        """Of its admission: a prompt or two and a picture to encode or a first step."""
        return 2.0 * self.row.spec.height * self.row.spec.width / 64

    def check(self, info: CheckpointInfo) -> None:
        """Refuse a call that does not bring what its spec needs.

        Raises:
            InvalidInput: the array that is missing, left over or of the wrong shape.
        """
        spec = self.row.spec
        if spec.checkpoint != info.name:
            raise InvalidInput(f"is {spec.checkpoint}; here is {info.name}", field="checkpoint")
        info.check_size(spec.height, spec.width)
        pixels = (spec.height, spec.width)
        masked = spec.mode is Mode.INPAINT
        wanted = {
            "image": (self.image, spec.mode is not Mode.TEXT2IMG, (*pixels, 3)),
            "mask": (self.mask, masked, pixels),
            "latents": (self.latents, spec.latents is not None, info.grid(*pixels)),
        }
        for name, (array, needed, shape) in wanted.items():
            if (array is not None) != needed:
                raise InvalidInput(f"{spec.mode} needs {'one' if needed else 'none'}", field=name)
            if array is not None and np.shape(array) != shape:
                raise InvalidInput(f"has the shape {np.shape(array)}, not {shape}", field=name)
        if (self.embeds is not None) != (spec.embeds is not None):
            raise InvalidInput("comes with a spec that names it, and only then", field="embeds")
        if self.embeds is not None:
            _check_embeds(self.embeds, info)
        if self.latents is not None:
            tokens = np.asarray(self.latents)
            known = (tokens >= 0) & (tokens < info.codebook_size) | (tokens == info.mask_token_id)
            if not known.all():
                raise InvalidInput(
                    f"has the token {int(tokens[~known][0])}",
                    field="latents",
                    hint=f"0 to {info.codebook_size - 1}, or {info.mask_token_id} for masked",
                )
        if spec.first_step >= spec.num_inference_steps:
            raise InvalidInput("leaves no step to do", field="strength")


def _check_embeds(embeds: Any, info: CheckpointInfo) -> None:
    pooled, hidden = (info.pooled_dim,), (info.text_tokens, info.hidden_dim)
    for name, shape in (
        ("prompt_embeds", pooled),
        ("encoder_hidden_states", hidden),
        ("negative_prompt_embeds", pooled),
        ("negative_encoder_hidden_states", hidden),
    ):
        array = getattr(embeds, name)
        if array is None and name.startswith("negative"):
            continue
        if array is None or np.shape(array) not in {shape, (1, *shape)}:
            raise InvalidInput(f"{name} must have the shape {shape}", field="embeds")


@dataclass(eq=False)
class Live:
    """A row on its way; the host counts its steps, the tile holds its tokens."""

    pending: Pending
    draws: Draws
    schedule: Schedule
    step: int  # index of the next one, in the whole schedule
    painted: Tensor  # which tokens started masked
    truncated: bool
    before: Tensor | None = None  # inpainting: the input's own tokens
    failed: bool = False
    steps_done: int = field(default=0)

    @property
    def spec(self) -> RenderSpec:
        return self.pending.row.spec

    @property
    def urgent(self) -> bool:
        return self.pending.urgent

    @property
    def done(self) -> bool:
        return self.failed or self.step >= self.spec.num_inference_steps

    @property
    def kept(self) -> Tensor | None:
        """The input's tokens, where a part of it shows beside what was painted."""
        mixed = bool(self.painted.any()) and not bool(self.painted.all())
        return self.before if mixed else None


def start(pending: Pending, info: CheckpointInfo, codec: Codec, kind: str) -> tuple[Live, Tensor]:
    """The row's host state and its starting tokens (tokens,)."""
    spec, drawn = pending.row.spec, draws(pending.row)
    grid = info.grid(spec.height, spec.width)
    seq_len = grid[0] * grid[1]
    masked = torch.ones(seq_len, dtype=torch.bool)
    tokens = torch.zeros(seq_len, dtype=torch.int64)
    before = None
    if pending.image is not None:
        tokens = codec.encode(pending.image)
    if pending.mask is not None:
        masked, before = token_mask(pending.mask, grid), tokens
    elif pending.image is not None:
        # Strength 1 starts at step 0 with everything masked; upstream's index -1 masks nothing.
        ratio = mask_ratio(kind, spec.first_step, spec.num_inference_steps)
        masked = drawn.start(seq_len) < ratio
    elif pending.latents is not None:
        tokens = torch.from_numpy(np.array(pending.latents, dtype=np.int64)).flatten()
        masked = tokens == info.mask_token_id
    tokens = torch.where(masked.to(tokens.device), info.mask_token_id, tokens)
    plan = schedule(spec, seq_len, int(masked.sum()), kind)
    # With nothing masked there is nothing to do: the picture is what came in.
    step = spec.first_step if bool(masked.any()) else spec.num_inference_steps
    return Live(pending, drawn, plan, step, masked, truncated=False, before=before), tokens


def token_mask(mask: NDArray[np.uint8], grid: tuple[int, int]) -> Tensor:
    """A mask in pixels, brought to token resolution and split at half, as upstream does."""
    small = Image.fromarray(np.ascontiguousarray(mask), "L").resize(
        (grid[1], grid[0]), Image.Resampling.LANCZOS
    )
    return torch.from_numpy(np.array(small) >= 128).flatten()
