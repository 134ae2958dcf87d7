"""Prompts to packed conditioning, each distinct one computed once and kept while there is room."""

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable
from functools import partial
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from farm.spec import RenderSpec
from farm_workers.engine.checkpoint import Parts

T = TypeVar("T")


class Lru(Generic[T]):
    """The last used values, bounded by their bytes."""

    def __init__(self, limit: int, size: Callable[[T], int]) -> None:
        self._limit, self._size, self._held = limit, size, 0
        self._values: OrderedDict[Hashable, T] = OrderedDict()

    def get(self, key: Hashable, make: Callable[[], T]) -> T:
        if key in self._values:
            self._values.move_to_end(key)
            return self._values[key]
        value = make()
        self.put(key, value)
        return value

    def put(self, key: Hashable, value: T) -> None:
        self._values[key] = value
        self._held += self._size(value)
        while self._held > self._limit and len(self._values) > 1:
            self._held -= self._size(self._values.popitem(last=False)[1])

    def __contains__(self, key: Hashable) -> bool:
        return key in self._values

    @property
    def held(self) -> int:
        return self._held

    def __len__(self) -> int:
        return len(self._values)


class Text(NamedTuple):
    """What the text encoder makes of one text."""

    hidden: Tensor  # (1, text tokens, hidden)
    pooled: Tensor  # (1, pooled)
    truncated: bool


class Conditioned(NamedTuple):
    key: Hashable  # of the prompt and all else that it was made from
    packed: Tensor
    truncated: bool


TEXT_TILE = 8  # texts that a GPU encodes together, always as many; a CPU takes them one by one


class Conditioning:
    """Each distinct prompt is computed once while the cache has room for it."""

    def __init__(self, parts: Parts, *, cache_bytes: int) -> None:
        self._parts = parts
        self._width = 1 if parts.device.type == "cpu" else TEXT_TILE
        self._empty: Text | None = None
        self._texts: Lru[Text] = Lru(cache_bytes // 4, lambda text: text.hidden.nbytes)
        self._packed: Lru[Conditioned] = Lru(cache_bytes, lambda held: held.packed.nbytes)

    def of(
        self, spec: RenderSpec, embeds: Any | None, ahead: Iterable[str] = ()
    ) -> list[Conditioned]:
        """The conditional half and, where the row is guided, the unconditional one before it.

        ``ahead`` are texts that will be wanted soon, for the free places of a tile.
        """
        halves = ["prompt"] if spec.guidance_scale <= 1.0 else ["negative", "prompt"]
        micro = (
            float(spec.width),
            float(spec.height),
            *map(float, spec.micro_conditioning_crop_coord),
            spec.micro_conditioning_aesthetic_score,
        )
        found = []
        for half in halves:
            text = spec.prompt if half == "prompt" else spec.negative_prompt
            given = _given(embeds, half) if embeds is not None else None
            key: Hashable = (text or "", micro)
            if given is not None:
                key = (spec.embeds, half, micro)
            make = partial(self._make, key, text or "", given, micro, ahead)
            found.append(self._packed.get(key, make))
        return found

    def _make(
        self,
        key: Hashable,
        text: str,
        given: tuple[Any, Any] | None,
        micro: tuple[float, ...],
        ahead: Iterable[str],
    ) -> Conditioned:
        parts = self._parts
        if given is not None:
            hidden, pooled = (
                torch.as_tensor(np.asarray(part)).to(parts.device, parts.dtype) for part in given
            )
            encoded = Text(hidden.reshape(1, *hidden.shape[-2:]), pooled.reshape(1, -1), False)
        else:
            encoded = self.encode(text, ahead)
        numbers = torch.tensor([micro], device=parts.device, dtype=encoded.hidden.dtype)
        packed = parts.transformer.condition(encoded.hidden, encoded.pooled, numbers)[0]
        return Conditioned(key, packed, encoded.truncated)

    def encode(self, text: str, ahead: Iterable[str] = ()) -> Text:
        if not text:
            if self._empty is None:
                self._empty = self._encode([""])[0]
            return self._empty
        if text not in self._texts:
            wanted = [other for other in dict.fromkeys(ahead) if other not in self._texts]
            tile = [text, *(other for other in wanted if other not in {"", text})][: self._width]
            for one, encoded in zip(tile, self._encode(tile), strict=True):
                self._texts.put(one, encoded)
        return self._texts.get(text, lambda: self._encode([text])[0])

    def _encode(self, texts: list[str]) -> list[Text]:
        parts = self._parts
        limit = min(parts.tokenizer.model_max_length, parts.info.text_tokens)
        ids = parts.tokenizer(
            [*texts, *[""] * (self._width - len(texts))],
            return_tensors="pt",
            padding="max_length",
            truncation=True,
            max_length=limit,
        ).input_ids.to(parts.device)
        output = parts.text_encoder(ids, return_dict=True, output_hidden_states=True)
        hidden, pooled = output.hidden_states[-2], output.text_embeds
        return [
            Text(
                hidden[index : index + 1].clone(),
                pooled[index : index + 1].clone(),
                len(parts.tokenizer(text, verbose=False).input_ids) > limit,
            )
            for index, text in enumerate(texts)
        ]


def _given(embeds: Any, half: str) -> tuple[Any, Any] | None:
    """The arrays of one half; without negative ones the empty prompt stands in."""
    if half == "prompt":
        return embeds.encoder_hidden_states, embeds.prompt_embeds
    if embeds.negative_prompt_embeds is None:
        return None
    return embeds.negative_encoder_hidden_states, embeds.negative_prompt_embeds
