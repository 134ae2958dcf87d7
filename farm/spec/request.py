"""What a user asks for, checked as a whole and resolved against a checkpoint."""

import difflib
import enum
import math
import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Self

from pydantic import ValidationError, field_validator, model_validator

from farm.errors import InvalidInput
from farm.spec.checkpoint import CheckpointInfo
from farm.spec.explain import explain
from farm.spec.parameters import MAX_PROMPT_CHARACTERS, PARAMETERS, RenderFields
from farm.spec.render import MAX_SEED, AdapterScale, Mode, RenderSpec, Rng

_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")


def _check_text(value: str, *, empty: bool) -> None:
    if len(value) > MAX_PROMPT_CHARACTERS:
        raise ValueError(
            f"has {len(value):,} characters; at most {MAX_PROMPT_CHARACTERS:,} are allowed"
        )
    if not empty and not value.strip():
        raise ValueError("is empty; say what to draw")
    if found := _CONTROL.search(value):
        raise ValueError(f"has the control character U+{ord(found[0]):04X}; remove it")
    if not value.isprintable() and any("\ud800" <= c <= "\udfff" for c in value):
        raise ValueError("has half a surrogate pair; send valid Unicode")


def accepts_prompt(value: Any) -> bool:
    """Whether a request takes this as its prompt as it is."""
    try:
        if type(value) is str:
            _check_text(value, empty=False)
    except ValueError:
        return False
    return type(value) is str


def accepts_prompts(values: Sequence[Any]) -> list[bool]:
    """What ``accepts_prompt`` says of each; of ordinary ones together, in a tenth of the time."""
    try:
        text = "".join(values)
    except TypeError:  # one of them is no text
        text = "\n"
    longest = max(map(len, values), default=0) if text.isprintable() else math.inf
    if longest <= MAX_PROMPT_CHARACTERS and all(map(str.strip, values)):
        return [True] * len(values)
    return [accepts_prompt(value) for value in values]


def accepts_seed(value: Any) -> bool:
    """Whether a request takes this as its seed as it is; None for a derived one."""
    return value is None or (type(value) is int and 0 <= value <= MAX_SEED)


class RenderRequest(RenderFields):
    """What a user writes; most of it may be left out.

    ``latents`` is a safetensors file with one integer tensor ``latents`` (token rows, columns);
    ``embeds`` one with ``prompt_embeds``, ``encoder_hidden_states`` and, optionally,
    ``negative_prompt_embeds`` and ``negative_encoder_hidden_states``.
    """

    @field_validator("mode", "rng", mode="before")
    @classmethod
    def _choice(cls, value: Any, info: Any) -> Any:
        kind: type[enum.StrEnum] = Mode if info.field_name == "mode" else Rng
        if value is None or isinstance(value, kind):
            return value
        names = [str(member) for member in kind]
        if value in names:
            return kind(value)
        close = difflib.get_close_matches(str(value), names, n=1, cutoff=0.4)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"{value!r} is not one of {', '.join(names)}{hint}")

    @field_validator("prompt", "negative_prompt")
    @classmethod
    def _text(cls, value: str | None, info: Any) -> str | None:
        if value is not None:
            _check_text(value, empty=info.field_name != "prompt")
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
    def _prompt_or_embeds(self) -> Self:
        if self.prompt is None and self.embeds is None:
            raise ValueError("prompt: is missing; say what to draw")
        if self.prompt is not None and self.embeds is not None:
            raise ValueError("give a prompt or embeds, not both")
        if self.embeds is not None and self.negative_prompt is not None:
            raise ValueError("negative_prompt: the embeds file carries the negative embeddings")
        return self

    @model_validator(mode="after")
    def _fits_its_mode(self) -> Self:
        mode = self.derived_mode
        if mode is Mode.TEXT2IMG:
            for field in ("image", "mask_image", "strength"):
                if getattr(self, field) is not None:
                    raise ValueError(f"{field}: not used by text2img; leave it or the mode out")
            return self
        if self.image is None:
            raise ValueError(f"image: {mode} needs one")
        if self.latents is not None:
            raise ValueError(f"latents: {mode} starts from the image; only text2img takes latents")
        if mode is Mode.INPAINT and self.mask_image is None:
            raise ValueError("mask_image: inpaint needs one; white areas are repainted")
        if mode is Mode.IMG2IMG and self.mask_image is not None:
            raise ValueError("mask_image: not used by img2img; ask for inpaint")
        if self.effective_steps == 0:
            raise ValueError(
                f"strength: {self.effective_strength:g} of {self.num_inference_steps} steps leaves "
                f"no step to do; give at least {1 / self.num_inference_steps:.3g}"
            )
        return self

    @model_validator(mode="after")
    def _scales_something(self) -> Self:
        if self.adapter_scale != 1.0 and not self.adapters:
            raise ValueError("adapter_scale: there is no adapter to scale; name one in adapters")
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
        """A request from JSON-like data; null is not given, like an empty cell of a table.

        Raises:
            InvalidInput: the first thing that is wrong, with its field and a hint.
        """
        if not isinstance(data, Mapping):
            raise InvalidInput(
                f"a render is an object, not {type(data).__name__}",
                field="render",
                hint='for example {"prompt": "a red circle"}',
            )
        try:
            return cls.model_validate(
                {
                    name: value
                    for name, value in data.items()
                    if value is not None or name not in cls.model_fields
                }
            )
        except ValidationError as error:
            raise explain(error, data, PARAMETERS) from None

    def resolve(
        self,
        info: CheckpointInfo,
        *,
        seed: int,
        picture: tuple[int, int] | None = None,
        adapters: Mapping[str, str] = MappingProxyType({}),
    ) -> RenderSpec:
        """Fill in every default.

        Args:
            info: the checkpoint that will render it.
            seed: the one to use where the request has none.
            picture: height and width in pixels of the input picture, where there is one.
            adapters: the sha256 of each adapter that is named by name.

        Raises:
            InvalidInput: the checkpoint cannot render that size, or an adapter stands there twice.
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
            rng=self.rng,
            adapters=self._scaled(adapters),
        )

    def _scaled(self, digests: Mapping[str, str]) -> tuple[AdapterScale, ...]:
        """The adapters with their whole scale; one of scale 0 adds nothing and is left out."""
        found: dict[str, AdapterScale] = {}
        for choice in self.adapters:
            try:
                sha256 = choice.sha256 or digests[choice.adapter]
            except KeyError:
                raise InvalidInput(
                    f"nothing says what {choice.adapter!r} stands for",
                    field="adapters",
                    hint="name the adapter by the sha256 of its file",
                ) from None
            if sha256 in found:
                raise InvalidInput(f"{choice.adapter} stands there twice", field="adapters")
            scale = choice.scale * self.adapter_scale
            found[sha256] = AdapterScale(sha256=sha256, scale=scale)
        return tuple(adapter for adapter in found.values() if adapter.scale)
