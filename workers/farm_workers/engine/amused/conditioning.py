"""Prompts to packed conditioning, each distinct one computed once and kept while there is room."""

from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from farm.spec import CheckpointInfo
from farm_workers.engine.amused.adapters import RowAdapters, Scaled, hooked
from farm_workers.engine.amused.text_encoder import TextEncoder
from farm_workers.engine.amused.tokenizer import Tokenizer
from farm_workers.engine.amused.transformer import Transformer, sinusoids
from farm_workers.engine.device import Device, Lru, Shaped
from farm_workers.engine.row import Conditioned, Pending

PROMPTS = 8  # that a GPU computes together, always as many; a CPU takes them one by one


class Text(NamedTuple):
    """What the text encoder makes of one text."""

    hidden: Tensor  # (1, text tokens, hidden)
    pooled: Tensor  # (1, pooled)
    truncated: bool


class Half(NamedTuple):
    """One of the two things that a row is conditioned on: its prompt or the negative one."""

    key: Hashable
    text: str
    given: tuple[Any, Any] | None  # embeddings in its place: hidden states, pooled
    micro: tuple[float, ...]


class Conditioning:
    """Each distinct prompt is computed once while the cache has room for it."""

    def __init__(
        self,
        info: CheckpointInfo,
        device: Device,
        tokenizer: Tokenizer,
        encoder: TextEncoder,
        transformer: Transformer,
        *,
        cache_bytes: int,
    ) -> None:
        self._info, self._device, self._transformer = info, device, transformer
        self._tokenizer, self._encoder = tokenizer, encoder
        self._dtype = next(self._encoder.parameters()).dtype
        self._limit = min(self._tokenizer.model_max_length, info.text_tokens)
        self._steps = transformer.config["micro_cond_embed_dim"]
        self._encoded = Shaped(device, encoder)
        self._condition = Shaped(device, transformer.condition)
        self._empty: dict[int, Text] = {}  # by width; most rows want it, so it always stays
        self._texts: Lru[Text] = Lru(cache_bytes // 4, lambda text: text.hidden.nbytes)
        self._packed: Lru[Conditioned] = Lru(cache_bytes, lambda held: held.packed.nbytes)

    def capture(self, *widths: int) -> None:
        """CUDA graphs of the text encoder and of all that follows, for such batches."""
        for width in widths:
            empty = self._tokenizer.encode("", self._limit).ids
            ids = self._device.upload(torch.tensor([empty] * width))
            self._encoded.capture(ids)
            hidden, pooled = (part.clone() for part in self._encoded(ids.clone()))
            steps = torch.zeros(width, self._steps, device=hidden.device)
            self._condition.capture(hidden, pooled, steps)

    def forget(self) -> None:
        """Give up the memory of prompts that are kept for later rows."""
        self._texts.clear()
        self._packed.clear()

    def of(
        self,
        pending: Pending,
        ahead: Iterable[Pending] = (),
        *,
        width: int,
        adapters: Sequence[Scaled] = (),
    ) -> list[Conditioned]:
        """The conditional half and, where the row is guided, the unconditional one before it.

        Args:
            ahead: rows that come next; their prompts take the free places of a batch.
            width: prompts that are computed together, always as many; with adapters it is 1.
            adapters: the row's.
        """
        width = 1 if adapters else width
        wanted = self._halves(pending, width)
        found = {half.key: self._packed.find(half.key) for half in wanted}
        missing = {half.key: half for half in wanted if found[half.key] is None}
        if missing and width > 1:
            plain = (other for other in ahead if not other.row.spec.adapters)
            for half in (half for other in plain for half in self._halves(other, width)):
                if len(missing) < width and half.key not in self._packed:
                    missing[half.key] = half
        halves = list(missing.values())
        for first in range(0, len(halves), width):
            batch = halves[first : first + width]
            found |= {held.key: held for held in self._make(batch, width, adapters)}
        # A kept prompt must not keep the adapters: they have a cache of their own.
        return [found[half.key]._replace(adapters=adapters) for half in wanted]  # type: ignore[union-attr]

    def _halves(self, pending: Pending, width: int) -> list[Half]:
        spec, embeds = pending.row.spec, pending.embeds
        micro = (
            float(spec.width),
            float(spec.height),
            *map(float, spec.micro_conditioning_crop_coord),
            spec.micro_conditioning_aesthetic_score,
        )
        found = []
        for half in ("negative", "prompt")[2 - pending.halves :]:
            text = (spec.prompt if half == "prompt" else spec.negative_prompt) or ""
            given = _given(embeds, half) if embeds is not None else None
            what: Hashable = text if given is None else (spec.embeds, half)
            found.append(Half((what, micro, width, spec.adapters), text, given, micro))
        return found

    def _make(
        self, halves: Sequence[Half], width: int, adapters: Sequence[Scaled]
    ) -> list[Conditioned]:
        texts = [half.text for half in halves if half.given is None]
        encoded = dict(zip(texts, self.encode(texts, width, adapters), strict=True))
        made = [
            encoded[half.text] if half.given is None else self._taken(half.given) for half in halves
        ]
        micro = [half.micro for half in halves]
        made += [made[0]] * (width - len(made))  # what fills the batch up is never read
        micro += [micro[0]] * (width - len(micro))
        numbers = torch.tensor(micro, dtype=self._dtype)
        steps = sinusoids(numbers.flatten(), self._transformer.config["micro_cond_encode_dim"])
        steps = self._device.upload(steps.reshape(width, -1))
        hidden = torch.cat([text.hidden for text in made])
        pooled = torch.cat([text.pooled for text in made])
        if adapters:
            packed = self._transformer.condition(hidden, pooled, steps, RowAdapters([adapters]))
        else:
            (packed,) = self._condition(hidden, pooled, steps)
        found = []
        for half, text, vector in zip(halves, made, packed, strict=False):
            held = Conditioned(half.key, vector.clone(), text.truncated)
            self._packed.put(half.key, held)
            found.append(held)
        return found

    def _taken(self, given: tuple[Any, Any]) -> Text:
        hidden, pooled = (
            self._device.upload(torch.as_tensor(np.asarray(part)).to(self._dtype)) for part in given
        )
        return Text(hidden.reshape(1, *hidden.shape[-2:]), pooled.reshape(1, -1), False)

    def encode(
        self, texts: Sequence[str], width: int, adapters: Sequence[Scaled] = ()
    ) -> list[Text]:
        """At most ``width`` texts through the text encoder, unless they are kept from before."""
        changing = [one for one in adapters if one.adapter.text_encoder]
        if texts and changing:  # what is made of these texts is kept, they are not
            with hooked(self._encoder, RowAdapters([changing], "text_encoder")):
                return self._encode(texts, width, self._encoder)
        found = {
            text: self._texts.find((text, width)) if text else self._empty.get(width)
            for text in texts
        }
        new = [text for text, kept in found.items() if kept is None]
        for text, encoded in zip(new, self._encode(new, width) if new else [], strict=True):
            found[text] = encoded
            if text:
                self._texts.put((text, width), encoded)
            else:
                self._empty[width] = encoded
        return [found[text] for text in texts]  # type: ignore[misc]

    def _encode(
        self, texts: Sequence[str], width: int, run: Callable[..., Any] | None = None
    ) -> list[Text]:
        """By ``run``, which is the text encoder with its graphs unless said."""
        filled = [*texts, *[""] * (width - len(texts))]
        encoded = [self._tokenizer.encode(text, self._limit) for text in filled]
        ids = self._device.upload(torch.tensor([one.ids for one in encoded]))
        hidden, pooled = (run or self._encoded)(ids)
        # Each a copy of its own: a part of the batch would keep all of it while it is kept.
        return [
            Text(
                hidden[index : index + 1].clone(),
                pooled[index : index + 1].clone(),
                encoded[index].truncated,
            )
            for index in range(len(texts))
        ]


def _given(embeds: Any, half: str) -> tuple[Any, Any] | None:
    """The arrays of one half; without negative ones the empty prompt stands in."""
    if half == "prompt":
        return embeds.encoder_hidden_states, embeds.prompt_embeds
    if embeds.negative_prompt_embeds is None:
        return None
    return embeds.negative_encoder_hidden_states, embeds.negative_prompt_embeds
