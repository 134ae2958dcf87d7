"""A resolved render: frozen, complete, and the same JSON for the same render."""

import enum
import functools
import hashlib
import json
from collections.abc import Iterable, Iterator
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
        for name in copied.__dict__.keys() - type(self).model_fields.keys():
            del copied.__dict__[name]
        return copied

    def variant(self, prompt: str | None, seed: int) -> Self:
        """The same render of another prompt, from another seed.

        Nothing is checked, and what follows from the other fields is shared: it costs a fifth of
        ``model_copy``.
        """
        shared = self._shared
        made = object.__new__(type(self))
        facts = {**self.__dict__, "prompt": prompt, "seed": seed, "_shared": shared}
        facts.pop("sha256", None)
        object.__setattr__(made, "__dict__", facts)
        object.__setattr__(made, "__pydantic_fields_set__", self.__pydantic_fields_set__)
        object.__setattr__(made, "__pydantic_extra__", None)
        object.__setattr__(made, "__pydantic_private__", None)
        return made

    def canonical(self) -> str:
        """Canonical JSON: keys sorted, no spaces, UTF-8."""
        return self.canonical_variant(self.prompt, self.seed)

    def canonical_variant(self, prompt: str | None, seed: int) -> str:
        """The same of ``variant``."""
        before, between, after = self._shared.texts
        return f"{before}{_CANONICAL.encode(prompt)}{between}{seed}{after}"

    @functools.cached_property
    def sha256(self) -> str:
        return hashlib.sha256(self.canonical().encode()).hexdigest()

    @property
    def common(self) -> str:
        """The canonical JSON without a prompt and a seed: equal for variants of one render."""
        return self._shared.common

    @functools.cached_property
    def _shared(self) -> "_Shared":
        return _Shared.of(self)

    @property
    def lane(self) -> Lane:
        return self._shared.lane

    @property
    def assets(self) -> tuple[str, ...]:
        return self._shared.assets

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
        return self._shared.row_steps

    @property
    def cost(self) -> int:
        """Row-steps of all its pictures."""
        return self.row_steps * self.num_images

    def rows(self) -> Iterator["Row"]:
        return (Row.of(self, index) for index in range(self.num_images))


class _Shared(NamedTuple):
    """What all variants of a render have in common."""

    texts: tuple[str, str, str]  # the canonical JSON before, between and after prompt and seed
    common: str
    lane: Lane
    assets: tuple[str, ...]
    row_steps: int

    @classmethod
    def of(cls, spec: RenderSpec) -> Self:
        data = spec.model_dump(mode="json") | {"prompt": None, "seed": None}
        # A quote within a value is escaped, so these stand nowhere else.
        before, prompt, rest = canonical_json(data).partition(',"prompt":')
        between, seed, after = rest.removeprefix("null").partition(',"seed":')
        texts = before + prompt, between + seed, after.removeprefix("null")
        named = (spec.image, spec.mask_image, spec.latents, spec.embeds)
        return cls(
            texts,
            "null".join(texts),
            Lane(spec.checkpoint, spec.mode, spec.height, spec.width),
            tuple(asset for asset in named if asset is not None),
            spec.num_inference_steps - spec.first_step,
        )


def row_seed(seed: int, index: int) -> int:
    """The seed of one picture of a render that has this one."""
    return (seed + index) % (MAX_SEED + 1)


class _RowFields(NamedTuple):
    kind: RenderSpec  # any variant of its render
    prompt: str | None
    seed: int  # of this very picture
    index: int  # type: ignore[assignment]  # in its render; a row is not searched


class Row(_RowFields):
    """One picture of a render: the engine's unit. The spec of its render is made when it is read:
    much follows from any variant of it."""

    @classmethod
    def of(cls, spec: RenderSpec, index: int) -> Self:
        return cls(spec, spec.prompt, row_seed(spec.seed, index), index)

    @functools.cached_property
    def spec(self) -> RenderSpec:
        return self.kind.variant(self.prompt, row_seed(self.seed, -self.index))


_CANONICAL = json.JSONEncoder(
    sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
)


def canonical_json(data: Any) -> str:
    return _CANONICAL.encode(data)


def derived_seed(job_seed: int, render: int) -> int:
    """The seed of a render that names none; below 2**48, so that every JSON reader keeps it."""
    return derived_seeds(job_seed, (render,))[0]


def derived_seeds(job_seed: int, renders: Iterable[int]) -> list[int]:
    """The seed of each; what the hashes have in common is hashed once."""
    copy, number = hashlib.sha256(b"%d:" % job_seed).copy, int.from_bytes
    found = []
    for render in renders:
        digest = copy()
        digest.update(b"%d" % render)
        found.append(number(digest.digest()[:6], "big"))
    return found
