"""A render: what a user asks for, the frozen form the farm works on, and the limits of both."""

import difflib
import enum
import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal, NamedTuple, Self

from pydantic import (
    AliasChoices,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from farm.errors import InvalidInput

SPEC_VERSION: Final = 1
MAX_PROMPT_CHARACTERS = 2000
MAX_STEPS = 1000
MAX_GUIDANCE = 100.0
MAX_TEMPERATURE = 100.0
MAX_SEED = 2**64 - 1
MAX_IMAGES = 64
MAX_SIDE = 4096  # pixels
MAX_GRID_TOKENS = 4096  # of one picture: 1024 x 1024 at pixel factor 16
MAX_CROP = 8192
MAX_SCORE = 10.0
MAX_ADAPTER_SCALE = 10.0


class Mode(enum.StrEnum):
    TEXT2IMG = "text2img"  # every token starts masked
    IMG2IMG = "img2img"  # a random share of the picture's tokens, by strength, starts masked
    INPAINT = "inpaint"  # the tokens under the mask start masked


class Rng(enum.StrEnum):
    FARM_1 = "farm-1"  # counter-based Philox4x32-10: the same integers on every device
    TORCH = "torch"  # one torch generator per row: diffusers' own draws


class Lane(NamedTuple):
    """What the scheduler fans out by; rows of one lane cost the same per step."""

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


class CheckpointInfo(BaseModel):
    """What the control plane must know of a checkpoint to resolve and check a request."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    revision: str
    pixel_factor: int  # pixels per token and side
    size_multiple: int  # pixels; twice the factor where the transformer downsamples
    native_height: int
    native_width: int
    default_guidance: float
    vocab_size: int
    codebook_size: int
    mask_token_id: int
    text_tokens: int  # length of the text encoder's input
    pooled_dim: int
    hidden_dim: int

    @property
    def name(self) -> str:
        return f"{self.id}@{self.revision}"

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Token rows and columns of a picture of that many pixels."""
        return height // self.pixel_factor, width // self.pixel_factor

    def check_size(self, height: int, width: int) -> None:
        for field, value in (("height", height), ("width", width)):
            if value % self.size_multiple:
                below = max(value // self.size_multiple, 1) * self.size_multiple
                raise InvalidInput(
                    f"{value} is not a multiple of {self.size_multiple} pixels, "
                    f"which {self.id} needs",
                    field=field,
                    hint=f"try {below} or {below + self.size_multiple}",
                )
        rows, columns = self.grid(height, width)
        if rows * columns > MAX_GRID_TOKENS:
            raise InvalidInput(
                f"{width} x {height} pixels are {rows * columns} tokens; "
                f"at most {MAX_GRID_TOKENS} are allowed",
                field="height",
                hint=f"{self.id} is made for {self.native_width} x {self.native_height}",
            )

    def fit_size(self, height: int, width: int) -> tuple[int, int]:
        """The size a picture is brought to when none is asked for.

        Its own, rounded down to the multiple; scaled down with its aspect kept where that is more
        than one render may have.
        """
        tokens = height * width / self.pixel_factor**2
        scale = min(1.0, math.sqrt(MAX_GRID_TOKENS / tokens), MAX_SIDE / max(height, width))
        fitted = [
            max(int(side * scale) // self.size_multiple, 1) * self.size_multiple
            for side in (height, width)
        ]
        return fitted[0], fitted[1]


def _whole(value: Any) -> Any:
    """JSON has one kind of number: 7.0 is the integer 7, true is none."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value


def _pair(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _asset(value: Any) -> Any:
    return value.removeprefix("sha256:") if isinstance(value, str) else value


Whole = Annotated[int, BeforeValidator(_whole)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Temperature = Annotated[Finite, Field(ge=0, le=MAX_TEMPERATURE)]
AssetId = Annotated[str, BeforeValidator(_asset), Field(pattern=r"^[0-9a-f]{64}$")]
Side = Annotated[Whole, Field(ge=8, le=MAX_SIDE)]
Crop = Annotated[Whole, Field(ge=0, le=MAX_CROP)]
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")


class RenderRequest(BaseModel):
    """What a user writes, in the pipelines' own parameter names; most of it may be left out.

    ``image``, ``mask_image``, ``latents`` and ``embeds`` name assets by the sha256 of their bytes.
    ``latents`` is a safetensors file with one integer tensor ``latents`` (token rows, columns);
    ``embeds`` one with ``prompt_embeds``, ``encoder_hidden_states`` and, optionally,
    ``negative_prompt_embeds`` and ``negative_encoder_hidden_states``.
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, populate_by_name=True, validate_default=False
    )

    mode: Mode | None = None
    checkpoint: str | None = None
    prompt: str | None = None
    negative_prompt: str | None = None
    height: Side | None = None
    width: Side | None = None
    num_inference_steps: Annotated[Whole, Field(ge=1, le=MAX_STEPS)] = 12
    guidance_scale: Annotated[Finite, Field(ge=0, le=MAX_GUIDANCE)] | None = None
    temperature: (
        Temperature | Annotated[tuple[Temperature, Temperature], BeforeValidator(_pair)]
    ) = (2.0, 0.0)
    seed: Annotated[Whole, Field(ge=0, le=MAX_SEED)] | None = None
    num_images: Annotated[Whole, Field(ge=1, le=MAX_IMAGES)] = Field(
        default=1, validation_alias=AliasChoices("num_images", "num_images_per_prompt")
    )
    image: AssetId | None = None
    mask_image: AssetId | None = None
    latents: AssetId | None = None
    embeds: AssetId | None = None
    strength: Annotated[Finite, Field(gt=0, le=1)] | None = None
    micro_conditioning_aesthetic_score: Annotated[Finite, Field(ge=0, le=MAX_SCORE)] = 6.0
    micro_conditioning_crop_coord: Annotated[tuple[Crop, Crop], BeforeValidator(_pair)] = (0, 0)
    adapter_scale: Annotated[Finite, Field(ge=-MAX_ADAPTER_SCALE, le=MAX_ADAPTER_SCALE)] = 1.0
    rng: Rng = Rng.FARM_1

    @field_validator("mode", "rng", mode="before")
    @classmethod
    def _name(cls, value: Any, info: Any) -> Any:
        kind: type[enum.StrEnum] = Mode if info.field_name == "mode" else Rng
        if value is None or isinstance(value, kind):
            return value
        names = [str(member) for member in kind]
        if value in names:
            return kind(value)
        close = difflib.get_close_matches(str(value), names, n=1, cutoff=0.4)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"{value!r} is none of {', '.join(names)}{hint}")

    @field_validator("prompt", "negative_prompt")
    @classmethod
    def _text(cls, value: str | None, info: Any) -> str | None:
        if value is None:
            return None
        if len(value) > MAX_PROMPT_CHARACTERS:
            raise ValueError(
                f"{len(value):,} characters; at most {MAX_PROMPT_CHARACTERS:,} are allowed"
            )
        if info.field_name == "prompt" and not value.strip():
            raise ValueError("is empty; say what to draw")
        if found := _CONTROL.search(value):
            raise ValueError(f"has the control character U+{ord(found[0]):04X}; remove it")
        if not value.isprintable() and any("\ud800" <= c <= "\udfff" for c in value):
            raise ValueError("has half a surrogate pair; send valid Unicode")
        return value

    @model_validator(mode="before")
    @classmethod
    def _adapter(cls, data: Any) -> Any:
        """``cross_attention_kwargs={"scale": s}`` is the pipelines' word for ``adapter_scale``."""
        if not isinstance(data, Mapping) or "cross_attention_kwargs" not in data:
            return data
        data = dict(data)
        given = data.pop("cross_attention_kwargs")
        if given is None:
            return data
        if not isinstance(given, Mapping) or set(given) - {"scale"}:
            raise ValueError('cross_attention_kwargs: only {"scale": number} is known')
        return {"adapter_scale": given.get("scale", 1.0), **data}

    @model_validator(mode="after")
    def _together(self) -> Self:
        if (self.prompt is None) == (self.embeds is None):
            raise ValueError("give a prompt, or embeds, and not both")
        if self.embeds is not None and self.negative_prompt is not None:
            raise ValueError("negative_prompt: the embeds file carries the negative embeddings")
        mode = self.derived_mode
        if mode is Mode.TEXT2IMG:
            for field in ("image", "mask_image", "strength"):
                if getattr(self, field) is not None:
                    raise ValueError(f"{field}: not used by text2img; leave it or the mode out")
        elif self.image is None:
            raise ValueError(f"image: {mode} needs one")
        elif self.latents is not None:
            raise ValueError(f"latents: {mode} starts from the image; only text2img takes latents")
        if mode is Mode.INPAINT and self.mask_image is None:
            raise ValueError("mask_image: inpaint needs one; white is painted anew")
        if mode is Mode.IMG2IMG and self.mask_image is not None:
            raise ValueError("mask_image: not used by img2img; ask for inpaint")
        if mode is not Mode.TEXT2IMG and self.effective_steps == 0:
            raise ValueError(
                f"strength: {self.effective_strength:g} of {self.num_inference_steps} steps leaves "
                f"no step to do; give at least {1 / self.num_inference_steps:.3g}"
            )
        return self

    @property
    def derived_mode(self) -> Mode:
        if self.mode is not None:
            return self.mode
        if self.mask_image is not None:
            return Mode.INPAINT
        return Mode.TEXT2IMG if self.image is None else Mode.IMG2IMG

    @property
    def effective_strength(self) -> float:
        if self.strength is not None:
            return self.strength
        return 0.5 if self.derived_mode is Mode.IMG2IMG else 1.0

    @property
    def effective_steps(self) -> int:
        return int(self.num_inference_steps * self.effective_strength)

    @classmethod
    def parse(cls, data: Any) -> Self:
        """A request from JSON-like data.

        Raises:
            InvalidInput: the first thing that is wrong, with its field and a hint.
        """
        if not isinstance(data, Mapping):
            raise InvalidInput(
                f"a render is an object, not {type(data).__name__}",
                field="render",
                hint='for example {"prompt": "a red bicycle"}',
            )
        try:
            return cls.model_validate(dict(data))
        except ValidationError as error:
            raise explain(error, data, tuple(cls.model_fields)) from None

    def resolve(
        self,
        info: CheckpointInfo,
        *,
        seed: int,
        picture: tuple[int, int] | None = None,
    ) -> "RenderSpec":
        """Fill every default in.

        Args:
            info: the checkpoint that will render it.
            seed: the one to use where the request has none.
            picture: height and width in pixels of the input picture, where there is one.
        """
        native = (info.native_height, info.native_width)
        default = info.fit_size(*picture) if picture else native
        height = default[0] if self.height is None else self.height
        width = default[1] if self.width is None else self.width
        info.check_size(height, width)
        guidance = info.default_guidance if self.guidance_scale is None else self.guidance_scale
        temperature = self.temperature
        mode = self.derived_mode
        return RenderSpec(
            checkpoint=info.name,
            mode=mode,
            prompt=self.prompt,
            negative_prompt=None if self.embeds else self.negative_prompt or "",
            height=height,
            width=width,
            num_inference_steps=self.num_inference_steps,
            guidance_scale=float(guidance),
            temperature=temperature if isinstance(temperature, tuple) else (temperature, 0.01),
            seed=seed if self.seed is None else self.seed,
            num_images=self.num_images,
            image=self.image,
            mask_image=self.mask_image,
            latents=self.latents,
            embeds=self.embeds,
            strength=None if mode is Mode.TEXT2IMG else self.effective_strength,
            micro_conditioning_aesthetic_score=float(self.micro_conditioning_aesthetic_score),
            micro_conditioning_crop_coord=self.micro_conditioning_crop_coord,
            adapter_scale=float(self.adapter_scale),
            rng=self.rng,
        )


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
    adapter_scale: float
    rng: Rng

    def canonical(self) -> str:
        """Canonical JSON: keys sorted, no spaces, UTF-8."""
        return canonical_json(self.model_dump(mode="json"))

    @property
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
    def first_step(self) -> int:
        """Index of the first step that is done; img2img and inpaint may skip some."""
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


def canonical_json(data: Any) -> str:
    return json.dumps(
        data, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )


def derived_seed(job_seed: int, render: int) -> int:
    """The seed of a render that names none; below 2**48, so that every JSON reader keeps it."""
    digest = hashlib.sha256(f"{job_seed}:{render}".encode()).digest()
    return int.from_bytes(digest[:6], "big")


def explain(
    error: ValidationError, data: Mapping[str, Any], known: tuple[str, ...]
) -> InvalidInput:
    """The first of pydantic's findings as one line that a user can act on."""
    finding = error.errors(include_url=False)[0]
    where = [str(part) for part in finding["loc"]]
    field = where[0] if where else None
    message = finding["msg"].removeprefix("Value error, ").replace("Input should", "must")
    hint = None
    if finding["type"] == "extra_forbidden" and field is not None:
        close = difflib.get_close_matches(field, known, n=1)
        message = "is not a known parameter"
        hint = f"did you mean {close[0]!r}?" if close else None
    elif field is None and ": " in message and message.split(":")[0] in known:
        field, message = message.split(": ", 1)
    elif field == "temperature":
        message = f"must be a number or a pair of numbers from 0 to {MAX_TEMPERATURE:g}"
    elif finding["type"] == "string_pattern_mismatch":
        message, hint = "is not an asset id", "upload the file first; its id is its sha256"
    elif (
        finding["type"] == "string_type" and field == "prompt" and isinstance(data.get(field), list)
    ):
        message, hint = "is one text, not a list", "send one render per prompt"
    told = finding["type"] in {"value_error", "extra_forbidden"}
    if not told and field is not None and field in data:
        shown = repr(data[field])
        message += f"; got {shown if len(shown) <= 60 else shown[:57] + '...'}"
    return InvalidInput(message, field=field, hint=hint)
