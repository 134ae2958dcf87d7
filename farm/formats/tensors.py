"""Tensors that users send: starting tokens and ready-made embeddings, as safetensors files."""

from typing import NamedTuple

import numpy as np
import safetensors
from numpy.typing import NDArray

from farm.errors import InvalidInput, TooLarge
from farm.spec import CheckpointInfo

LATENTS = ("latents", "tokens")  # the pipelines' word, and that of the farm's own token files
MAX_TENSOR_BYTES = 16 * 2**20

_INTEGERS = {
    "U8": "<u1", "I8": "<i1", "U16": "<u2", "I16": "<i2",
    "U32": "<u4", "I32": "<i4", "U64": "<u8", "I64": "<i8",
}  # fmt: skip
_FLOATS = {"F16": "<f2", "F32": "<f4", "F64": "<f8"}
_REQUIRED = ("prompt_embeds", "encoder_hidden_states")
_OPTIONAL = ("negative_prompt_embeds", "negative_encoder_hidden_states")


class Embeds(NamedTuple):
    """What the text encoder would have given, float32.

    The pooled embeddings have the shape (pooled_dim,), the hidden states
    (text_tokens, hidden_dim).
    """

    prompt_embeds: NDArray[np.float32]
    encoder_hidden_states: NDArray[np.float32]
    negative_prompt_embeds: NDArray[np.float32] | None
    negative_encoder_hidden_states: NDArray[np.float32] | None


def read_latents(data: bytes, info: CheckpointInfo, height: int, width: int) -> NDArray[np.int64]:
    """Starting tokens (rows, columns) from a file with one integer tensor, of either name."""
    tensors = _Tensors(data, "latents")
    name = next((name for name in LATENTS if name in tensors.names), LATENTS[0])
    tensors.check_names((name,), ())
    tokens = tensors.read(name, info.grid(height, width), _INTEGERS).astype(np.int64)
    wrong = tokens[((tokens < 0) | (tokens >= info.codebook_size)) & (tokens != info.mask_token_id)]
    if wrong.size:
        raise InvalidInput(
            f"has the token {wrong[0]}; allowed are 0 to {info.codebook_size - 1}, "
            f"and {info.mask_token_id} where a token is still masked",
            field="latents",
        )
    return tokens


def read_embeds(data: bytes, info: CheckpointInfo) -> Embeds:
    """Embeddings as the pipelines take them, with or without a batch dimension of one."""
    tensors = _Tensors(data, "embeds")
    tensors.check_names(_REQUIRED, _OPTIONAL)
    if len(tensors.names & set(_OPTIONAL)) == 1:
        raise InvalidInput(
            f"has one of {' and '.join(_OPTIONAL)}",
            field="embeds",
            hint="give both, or neither: then the empty text is the negative prompt",
        )
    pooled, hidden = (info.pooled_dim,), (info.text_tokens, info.hidden_dim)
    return Embeds(
        tensors.floats("prompt_embeds", pooled),
        tensors.floats("encoder_hidden_states", hidden),
        tensors.floats_or_none("negative_prompt_embeds", pooled),
        tensors.floats_or_none("negative_encoder_hidden_states", hidden),
    )


class _Tensors:
    def __init__(self, data: bytes, field: str) -> None:
        self._field = field
        if len(data) > MAX_TENSOR_BYTES:
            raise TooLarge(
                f"has {len(data):,} bytes; at most {MAX_TENSOR_BYTES:,} are allowed", field=field
            )
        try:
            self._tensors = dict(safetensors.deserialize(data))  # type: ignore[no-untyped-call]
        except safetensors.SafetensorError as error:
            raise self.refuse(
                f"is not a safetensors file: {error}",
                "write it with safetensors.torch.save_file; pickled tensors are not read",
            ) from None

    @property
    def names(self) -> set[str]:
        return set(self._tensors)

    def refuse(self, message: str, hint: str | None = None) -> InvalidInput:
        return InvalidInput(message, field=self._field, hint=hint)

    def check_names(self, required: tuple[str, ...], optional: tuple[str, ...]) -> None:
        for name in required:
            if name not in self.names:
                raise self.refuse(f"has no tensor {name!r}")
        if unknown := self.names - set(required) - set(optional):
            raise self.refuse(
                f"has the unknown tensor {sorted(unknown)[0][:80]!r}",
                f"known are {', '.join((*required, *optional))}",
            )

    def read(self, name: str, shape: tuple[int, ...], types: dict[str, str]) -> NDArray[np.generic]:
        tensor = self._tensors[name]
        given, kind = tuple(tensor["shape"]), tensor["dtype"]
        if kind not in types:
            raise self.refuse(f"{name} has the type {kind}; allowed are {', '.join(types)}")
        if given not in {shape, (1, *shape)}:
            raise self.refuse(f"{name} has the shape {given}; {shape} is needed")
        return np.frombuffer(tensor["data"], types[kind]).reshape(shape)

    def floats(self, name: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
        if self._tensors[name]["dtype"] == "BF16":
            halves = self.read(name, shape, {"BF16": "<u2"}).astype(np.uint32)
            values = (halves << 16).view(np.float32)
        else:
            with np.errstate(over="ignore"):
                values = self.read(name, shape, _FLOATS | {"BF16": ""}).astype(np.float32)
        if not np.isfinite(values).all():
            raise self.refuse(f"{name} has values that are not finite")
        return values

    def floats_or_none(self, name: str, shape: tuple[int, ...]) -> NDArray[np.float32] | None:
        return self.floats(name, shape) if name in self.names else None
