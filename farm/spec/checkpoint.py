"""What a checkpoint asks of the renders that are made with it."""

import math
import re
from collections.abc import Callable

from pydantic import BaseModel, ConfigDict, Field

from farm.errors import InvalidInput
from farm.spec.model_sizes import ModelSizes
from farm.spec.render import RenderSpec

MAX_SIDE = 4096  # pixels
MAX_GRID_TOKENS = 4096  # of one picture: 1024 x 1024 at pixel factor 16
MAX_WORDS = 8  # that a note names

_WORD = re.compile(r"\w+(?:'\w+)?")


def _unknown_words(prompt: str | None, known: frozenset[str]) -> list[str]:
    text = (prompt or "").lower()
    if known.issuperset(text.split()):  # takes a fifth of the time
        return []
    words = _WORD.findall(text)
    return list(dict.fromkeys([word for word in words if word not in known]))


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
    sizes: ModelSizes | None = None  # None: it takes no adapters
    # The words of the captions that it was trained with, where these are few; none: any text.
    vocabulary: tuple[str, ...] = Field((), exclude_if=lambda value: not value)
    example: str = Field("a red bicycle", exclude_if=lambda value: value == "a red bicycle")

    @property
    def name(self) -> str:
        return f"{self.id}@{self.revision}"

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Token rows and columns of a picture of that many pixels."""
        return height // self.pixel_factor, width // self.pixel_factor

    def notes(self, spec: RenderSpec) -> tuple[str, ...]:
        """What a render asks for that the checkpoint was not made for: a size or words. It is
        drawn all the same."""
        return self.notes_by_prompt(spec)(spec.prompt)

    def notes_by_prompt(self, spec: RenderSpec) -> Callable[[str | None], tuple[str, ...]]:
        """The same of variants of a render."""
        size: tuple[str, ...] = ()
        if (spec.height, spec.width) != (self.native_height, self.native_width):
            size = (f"size: {self.id} is made for {self.native_width} x {self.native_height}",)
        known = self._known
        if spec.adapters or not self.vocabulary:
            return lambda prompt: size

        def notes(prompt: str | None) -> tuple[str, ...]:
            unknown = _unknown_words(prompt, known)
            if not unknown:
                return size
            words = ", ".join(unknown[:MAX_WORDS])
            return f"prompt: {self.id} was not trained with: {words}", *size

        return notes

    def unknown_words(self, prompt: str) -> list[str]:
        """Those that are not in the vocabulary, each once, in their order."""
        return _unknown_words(prompt, self._known) if self.vocabulary else []

    @property
    def _known(self) -> frozenset[str]:
        return frozenset(filter(_WORD.fullmatch, self.vocabulary))

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
