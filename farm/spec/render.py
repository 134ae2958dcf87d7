"""A resolved render: frozen, complete, and the same JSON for the same render."""

import enum
import functools
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final, Literal, NamedTuple, Self

from pydantic import BaseModel, ConfigDict, Field

SPEC_VERSION: Final = 1
MAX_SEED = 2**64 - 1


class Mode(enum.StrEnum):
    TEXT2IMG = "text2img"  # every token starts masked
    IMG2IMG = "img2img"  # a random share of the picture's tokens, by strength, starts masked
    INPAINT = "inpaint"  # the tokens under the mask start masked


class Rng(enum.StrEnum):
    FARM_1 = "farm-1"  # counter-based Philox4x32-10: the same integers on every device
    TORCH = "torch"  # one torch generator per row: diffusers' own draws


class Lane(NamedTuple):
    """What work is queued by: rows of one lane cost the same per step."""

    checkpoint: str  # "<id>@<revision>"
    mode: Mode
    height: int  # pixels
    width: int

    def __str__(self) -> str:
        return f"{self.checkpoint}/{self.mode}/{self.height}x{self.width}"

    @classmethod
    def parse(cls, text: str) -> Self:
        checkpoint, mode, size = text.rsplit("/", 2)
        height, width = size.split("x")
        return cls(checkpoint, Mode(mode), int(height), int(width))


class AdapterScale(BaseModel):
    """A low-rank adapter (LoRA, Hu et al. 2021, arXiv:2106.09685) and how much of it is added."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    sha256: str  # of the file
    scale: float  # everything that the request said of it, multiplied


class RenderSpec(BaseModel):
    """A resolved render: frozen, nothing left to default, the same JSON for the same render."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    v: Literal[1] = SPEC_VERSION
    checkpoint: str
    mode: Mode
    prompt: str | None
    negative_prompt: str | None
    height: int
    width: int
    num_inference_steps: int
    guidance_scale: float
    temperature: tuple[float, float]
    seed: int
    num_images: int
    image: str | None
    mask_image: str | None
    latents: str | None
    embeds: str | None
    strength: float | None
    micro_conditioning_aesthetic_score: float
    micro_conditioning_crop_coord: tuple[int, int]
    adapter_scale: float = 1.0  # in the adapters' own scales; it stays for the sake of old hashes
    rng: Rng
    # Added in this order. A render without any keeps the JSON, and so the hash, that it had before
    # there were adapters.
    adapters: tuple[AdapterScale, ...] = Field((), exclude_if=lambda adapters: not adapters)

    def __copy__(self) -> Self:
        """Without what is derived: ``model_copy`` changes what it copies."""
        copied = super().__copy__()
        for name in ("_canonical", "sha256"):
            copied.__dict__.pop(name, None)
        return copied

    def variant(self, prompt: str, seed: int) -> Self:
        """The same render of another prompt, from another seed."""
        return self.model_copy(update={"prompt": prompt, "seed": seed})

    def canonical(self) -> str:
        """Canonical JSON: keys sorted, no spaces, UTF-8."""
        return self._canonical

    @functools.cached_property
    def _canonical(self) -> str:
        return canonical_json(self.model_dump(mode="json"))

    @functools.cached_property
    def sha256(self) -> str:
        return hashlib.sha256(self.canonical().encode()).hexdigest()

    @property
    def lane(self) -> Lane:
        return Lane(self.checkpoint, self.mode, self.height, self.width)

    @property
    def assets(self) -> tuple[str, ...]:
        named = (self.image, self.mask_image, self.latents, self.embeds)
        return tuple(asset for asset in named if asset is not None)

    @property
    def guided(self) -> bool:
        """Whether each step takes two forward passes, with and without the prompt: classifier-free
        guidance (Ho and Salimans 2022, arXiv:2207.12598), as the pipelines decide it."""
        return self.guidance_scale > 1.0

    @property
    def first_step(self) -> int:
        """Index of the first step that is run; img2img and inpaint may skip some."""
        if self.strength is None:
            return 0
        return self.num_inference_steps - int(self.num_inference_steps * self.strength)

    @property
    def row_steps(self) -> int:
        """Denoising steps that one picture takes: the farm's unit of work."""
        return self.num_inference_steps - self.first_step

    @property
    def cost(self) -> int:
        """Row-steps of all its pictures."""
        return self.row_steps * self.num_images

    def rows(self) -> Iterator["Row"]:
        return (Row(self, index) for index in range(self.num_images))


@dataclass(frozen=True, slots=True)
class Row:
    """One picture of a render: the engine's unit."""

    spec: RenderSpec
    index: int

    @property
    def seed(self) -> int:
        return (self.spec.seed + self.index) % (MAX_SEED + 1)


_CANONICAL = json.JSONEncoder(
    sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
)


def canonical_json(data: Any) -> str:
    return _CANONICAL.encode(data)


def derived_seed(job_seed: int, render: int) -> int:
    """The seed of a render that names none; below 2**48, so that every JSON reader keeps it."""
    digest = hashlib.sha256(f"{job_seed}:{render}".encode()).digest()
    return int.from_bytes(digest[:6], "big")
