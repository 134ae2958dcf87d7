"""A row's way through the engine: waiting, stepping, finished, delivered."""

import functools
import itertools
import logging
import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from farm.errors import FarmError, InvalidInput, OutOfMemory, RenderError
from farm.spec import CheckpointInfo, Mode, RenderSpec, Row
from farm_workers.engine.device import Device, Download, lacks_memory
from farm_workers.engine.rng import Draws, draws

KEPT = -1  # of starting tokens: the place holds the input picture's own token


@dataclass(frozen=True, eq=False)
class Result:
    """A row that left the engine: its tokens and picture, or its error."""

    key: Hashable
    index: int
    tokens: NDArray[np.uint16] | None  # (token rows, columns)
    pixels: NDArray[np.uint8] | None  # (height, width, 3)
    confidence: float  # mean probability of the tokens it painted, when each was fixed
    steps: int
    error: FarmError | None = None
    truncated: bool = False  # the prompt is longer than the text encoder's input
    numerics: str = ""  # the class of the numbers: in one class, equal rows have equal bytes

    @classmethod
    def failed(cls, key: Hashable, index: int, error: FarmError, steps: int = 0) -> Self:
        return cls(key, index, None, None, 0.0, steps, error)


@dataclass(frozen=True, eq=False)
class Preview:
    """A row half way: what the model thinks the picture will be."""

    key: Hashable
    index: int
    step: int
    steps: int
    pixels: NDArray[np.uint8]
    confidence: float


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
    adapters: Mapping[str, Any] = field(default_factory=dict)  # by the sha256 of their files
    pixels: bool = True  # whether its picture is wanted, or its tokens alone
    overtaken: int = 0  # rows that went before it because they needed less room

    @property
    def cost(self) -> float:
        """Of its admission: a prompt or two and a picture to encode or a first step."""
        return 2.0 * self.row.spec.height * self.row.spec.width / 64

    @property
    def halves(self) -> int:
        """Half-slots that it takes: guidance compares two forward passes."""
        return 2 if self.row.spec.guided else 1

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
        named = {one.sha256 for one in spec.adapters}
        if self.adapters.keys() != named:
            wrong = sorted(named ^ self.adapters.keys())[0]
            was = "named but not given" if wrong in named else "given but not named"
            raise InvalidInput(f"{wrong[:12]} is {was}", field="adapters")
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


class Schedule(NamedTuple):
    """What the host knows of a row's steps before the first one."""

    temperatures: tuple[float, ...]
    planned: tuple[int, ...]  # tokens that stay masked after each step; 0 after the last


def schedule(spec: RenderSpec, seq_len: int, start_masked: int, kind: str) -> Schedule:
    """Computed as upstream's scheduler does on a CPU, float32 rounding included."""
    steps = spec.num_inference_steps
    temperatures = torch.linspace(*spec.temperature, steps).tolist()
    inpaint = spec.mode is Mode.INPAINT
    # This row's own share: upstream takes one over the whole batch.
    share = torch.tensor(start_masked) / seq_len if inpaint else torch.tensor(1.0)
    ratios = [mask_ratio("linear" if inpaint else kind, step + 1, steps) for step in range(steps)]
    planned = [max(int((seq_len * (share * ratio)).floor()), 1) for ratio in ratios]
    planned[-1] = 0
    return Schedule(tuple(temperatures), tuple(planned))


@functools.lru_cache(maxsize=4096)
def mask_ratio(kind: str, done: int, steps: int) -> Tensor:
    """Share of the tokens that is masked after ``done`` of ``steps`` steps."""
    # One number at a time: torch's vector cosine differs from its scalar one in the last bit.
    ratio = torch.tensor([[done]]) / steps
    return (torch.cos(ratio * math.pi / 2) if kind == "cosine" else 1 - ratio)[0, 0]


class Conditioned(NamedTuple):
    """A prompt as the model's forward pass takes it."""

    key: Hashable  # equal for equal prompts in equal circumstances
    packed: Tensor  # (conditioning_size,)
    truncated: bool
    adapters: Sequence[Any] = ()  # that the pass adds to its layers; the same in both halves


@dataclass(eq=False)
class Live:
    """A row on its way; the host counts its steps, the tile holds its tokens."""

    pending: Pending
    draws: Draws
    schedule: Schedule
    step: int  # index of the next one, in the whole schedule
    start: Tensor  # tokens to begin with, on the host; KEPT where the input's own stay
    painted: Tensor  # which tokens started masked
    before: Tensor | None = None  # the input's tokens, on the device
    truncated: bool = False
    error: FarmError | None = None
    slots: tuple[int, ...] = ()  # its half-slots in the tile; its state lies in the first one
    steps_done: int = field(default=0)

    @property
    def spec(self) -> RenderSpec:
        return self.pending.row.spec

    @property
    def urgent(self) -> bool:
        return self.pending.urgent

    @property
    def done(self) -> bool:
        return self.step >= self.spec.num_inference_steps

    def failure(self) -> Result:
        assert self.error is not None
        pending = self.pending
        return Result.failed(pending.key, pending.row.index, self.error, self.steps_done)

    @property
    def kept(self) -> Tensor | None:
        """The input's tokens, where a part of it shows beside what was painted."""
        partly = bool(self.painted.any()) and not bool(self.painted.all())
        return self.before if partly and self.spec.mode is Mode.INPAINT else None

    def first_tokens(self, device: Device) -> Tensor:
        start = device.upload(self.start)
        return start if self.before is None else torch.where(start == KEPT, self.before, start)


def start(pending: Pending, info: CheckpointInfo, before: Tensor | None, kind: str) -> Live:
    """The row's state before its first step.

    Args:
        before: the input picture's tokens, where there is one.
        kind: the checkpoint's masking schedule.
    """
    spec, drawn = pending.row.spec, draws(pending.row)
    grid = info.grid(spec.height, spec.width)
    seq_len = grid[0] * grid[1]
    masked = torch.ones(seq_len, dtype=torch.bool)
    tokens = torch.full((seq_len,), KEPT)
    if pending.mask is not None:
        masked = token_mask(pending.mask, grid)
    elif pending.image is not None:
        # Strength 1 starts at step 0 with everything masked; upstream's index -1 masks nothing.
        ratio = mask_ratio(kind, spec.first_step, spec.num_inference_steps)
        masked = drawn.start(seq_len) < ratio
    elif pending.latents is not None:
        tokens = torch.from_numpy(np.array(pending.latents, dtype=np.int64)).flatten()
        masked = tokens == info.mask_token_id
    tokens = torch.where(masked, info.mask_token_id, tokens)
    plan = schedule(spec, seq_len, int(masked.sum()), kind)
    # With nothing masked there is nothing to do: the picture is what came in.
    step = spec.first_step if bool(masked.any()) else spec.num_inference_steps
    return Live(pending, drawn, plan, step, tokens, masked, before)


def token_mask(mask: NDArray[np.uint8], grid: tuple[int, int]) -> Tensor:
    """A mask in pixels, brought to token resolution and split at half, as upstream does."""
    small = Image.fromarray(np.ascontiguousarray(mask), "L").resize(
        (grid[1], grid[0]), Image.Resampling.LANCZOS
    )
    return torch.from_numpy(np.array(small) >= 128).flatten()


@dataclass(frozen=True, eq=False)
class Finished:
    """A row with its last token, which may wait to be decoded."""

    live: Live
    grid: tuple[int, int]
    tokens: Tensor  # on the device
    brought: Download  # by it and others: tokens (rows, tokens), confidence and failure (rows, 2)
    place: int  # among them

    @property
    def urgent(self) -> bool:
        return self.live.urgent

    @property
    def pictures(self) -> int:
        """To decode: its own, and the input where some of that shows beside it."""
        return 1 if self.live.kept is None else 2

    @property
    def cost(self) -> float:
        return 2.0 * len(self.tokens) * self.pictures

    def result(self, pixels: NDArray[np.uint8] | None, numerics: str) -> Result:
        live, pending = self.live, self.live.pending
        tokens, facts = (part[self.place] for part in self.brought.arrays())
        if facts[1]:
            live.error = not_finite()
            return live.failure()
        return Result(
            pending.key,
            pending.row.index,
            tokens.astype(np.uint16).reshape(self.grid),
            pixels,
            float(facts[0]),
            live.steps_done,
            truncated=live.truncated,
            numerics=numerics,
        )


@dataclass(frozen=True, eq=False)
class Leaving:
    """Rows whose results go to the host together."""

    rows: Sequence[Finished]
    pixels: Download | None = None  # uint8 (rows, height, width, 3); None: only tokens are wanted

    @property
    def ready(self) -> bool:
        return (self.pixels or self.rows[0].brought).ready

    def results(self, numerics: str) -> list[Result]:
        pictures: Any = [None] * len(self.rows) if self.pixels is None else self.pixels.arrays()[0]
        return [
            held.result(picture, numerics)
            for held, picture in zip(self.rows, pictures, strict=True)
        ]


def cells(painted: Tensor, grid: tuple[int, int], shape: Sequence[int]) -> Tensor:
    """The pixels (height, width, 1) of an inpainted picture that are not the input's.

    All others are shown as the input's own tokens look when they are decoded. The tokens of the
    new picture are the same there, but not what the decoder makes of them, because its norms see
    the whole picture.
    """
    found: Tensor = painted.unflatten(0, grid)
    for dim in (0, 1):
        found = found.repeat_interleave(shape[dim] // grid[dim], dim)
    return found[..., None]


def fitting(rows: Sequence[Finished], width: int) -> list[Finished]:
    """The first rows whose pictures fill a tile of the decoder and do not overflow it."""
    pictures = itertools.accumulate(held.pictures for held in rows)
    places = enumerate(zip(rows, pictures, strict=True))
    return [held for place, (held, count) in places if place == 0 or count <= width]


def not_finite() -> RenderError:
    return RenderError(
        "the model's scores are not finite for this row",
        hint="check its embeds and the checkpoint; its neighbours are not concerned",
    )


def row_error(error: Exception) -> FarmError:
    """What becomes of a row that its own arithmetic or admission has failed.

    Raises:
        AcceleratorError: the device itself has failed, for every row.
    """
    if isinstance(error, FarmError):
        return error
    if lacks_memory(error):
        return OutOfMemory("the row did not fit into memory", hint="make it or the tile smaller")
    if isinstance(error, torch.AcceleratorError):
        raise error
    logging.getLogger(__name__).warning("a row failed", exc_info=error)
    return RenderError(
        f"the row failed with {type(error).__name__}: {str(error).partition(chr(10))[0]}",
        hint="its neighbours are not concerned; the worker's log has the traceback",
    )
