"""Low-rank adapters as files: checked against a checkpoint's layers without loading a model.

A file has two matrices for each layer that it changes. They come from diffusers' aMUSEd training
example (``pytorch_lora_weights.safetensors``: keys that begin with ``transformer.`` and
``text_encoder.``) or from PEFT (``adapter_model.safetensors``: ``base_model.model.``).
"""

import json
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import safetensors
from numpy.typing import NDArray

from farm.formats.adapter_alpha import ALPHA, CONFIG, Alphas, check_config, number_of, refused

Targets = Mapping[str, tuple[int, int]]  # a layer's name to its inputs and outputs

MAX_RANK = 256
MAX_HEADER = 2**20  # bytes; one that names every layer of amused-512 has an eighth of them
TEXT_LAYERS = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj")

_EXPONENTS = {"F16": ("<u2", 0x7C00), "BF16": ("<u2", 0x7F80), "F32": ("<u4", 0x7F800000)}
_MATRIX = re.compile(
    r"(?P<layer>.+)\.(?:lora|lora_linear_layer)[._](?P<part>A|B|down|up)(?:\.default)?\.weight"
)
_READ = "files of diffusers' train_amused.py and of PEFT's LoraConfig are read"


class AdapterLayer(NamedTuple):
    """What an adapter adds to one linear layer: ``up @ down``, times ``scaling``."""

    name: str  # such as transformer.transformer_layers.0.attn1.to_q
    rank: int
    alpha: float
    divisor: float  # the rank, or its square root where the training said so
    down: str  # key of the matrix (rank, inputs)
    up: str  # key of the matrix (outputs, rank)

    def scaling(self, scale: float) -> float:
        """In PEFT's order of rounding (``LoraLayer.set_scale``)."""
        return scale * self.alpha / self.divisor


@dataclass(frozen=True)
class AdapterFile:
    """What a file changes, in the order of the layers' names."""

    layers: tuple[AdapterLayer, ...]

    @property
    def rank(self) -> int:
        return max(layer.rank for layer in self.layers)

    @property
    def alpha(self) -> float | None:
        """None where the layers have different ones."""
        found = {layer.alpha for layer in self.layers}
        return found.pop() if len(found) == 1 else None

    @property
    def targets(self) -> tuple[str, ...]:
        """The kinds of layers, such as ``to_q``."""
        kinds = (re.sub(r"\.\d+$", "", layer.name).rpartition(".")[2] for layer in self.layers)
        return tuple(sorted(set(kinds)))


def adapter_targets(
    transformer: Mapping[str, Any], text_encoder: Mapping[str, Any]
) -> dict[str, tuple[int, int]]:
    """The layers that an adapter can change, from a checkpoint's two ``config.json``.

    All linear layers of the transformer and those of the text encoder's blocks, which are what
    diffusers loads adapters into.
    """
    found = dict(_transformer_layers(transformer))
    width, inner = text_encoder["hidden_size"], text_encoder["intermediate_size"]
    for number in range(text_encoder["num_hidden_layers"]):
        layer = f"text_encoder.text_model.encoder.layers.{number}"
        found |= {f"{layer}.{name}": (width, width) for name in TEXT_LAYERS}
        found |= {f"{layer}.mlp.fc1": (width, inner), f"{layer}.mlp.fc2": (inner, width)}
    return found


def _transformer_layers(config: Mapping[str, Any]) -> Iterator[tuple[str, tuple[int, int]]]:
    width, channels, inner = (
        config[key] for key in ("hidden_size", "block_out_channels", "intermediate_size")
    )
    condition = config["micro_cond_embed_dim"] + config["cond_embed_dim"]
    layers = {
        "encoder_proj": (config["encoder_hidden_size"], width),
        "cond_embed.linear_1": (condition, width),
        "cond_embed.linear_2": (width, width),
        "project_to_hidden": (channels, width),
        "project_from_hidden": (width, channels),
    }
    for number in range(config["num_hidden_layers"]):
        layer = f"transformer_layers.{number}"
        layers |= {f"{layer}.norm{norm}.linear": (width, 2 * width) for norm in (1, 2, 3)}
        for attention in ("attn1", "attn2"):
            layers |= _attention(f"{layer}.{attention}", width)
        layers |= {
            f"{layer}.ff.net.0.proj": (width, 2 * inner),
            f"{layer}.ff.net.2": (inner, width),
        }
    for block in ("down_block", "up_block"):
        for number in range(config["num_res_blocks"]):
            res, crossed = f"{block}.res_blocks.{number}", f"{block}.attention_blocks.{number}"
            layers |= {
                f"{res}.channelwise_linear_1": (channels, 4 * channels),
                f"{res}.channelwise_linear_2": (4 * channels, channels),
                f"{res}.cond_embeds_mapper": (width, 2 * channels),
            }
            if width != channels:
                layers[f"{crossed}.kv_mapper"] = (width, channels)
            for attention in ("attn1", "attn2"):
                layers |= _attention(f"{crossed}.{attention}", channels)
    return ((f"transformer.{name}", shape) for name, shape in layers.items())


def _attention(name: str, width: int) -> dict[str, tuple[int, int]]:
    return {f"{name}.{part}": (width, width) for part in ("to_q", "to_k", "to_v", "to_out.0")}


def read_adapter_file(data: bytes, targets: Targets | None = None) -> AdapterFile:
    """The layers that a file changes, all of them checked.

    Args:
        targets: of the checkpoint it is for; without them it is not compared with one.

    Raises:
        InvalidInput: it is not an adapter, or not one for this checkpoint.
    """
    tensors, alphas = _open(data)
    pairs: dict[str, dict[str, str]] = defaultdict(dict)
    for key in tensors:
        matched = _MATRIX.fullmatch(key)
        if key in alphas.tensors:
            continue
        if matched is None:
            raise refused(f"has the tensor {key[:120]!r}, which is not a low-rank matrix", _READ)
        part = "down" if matched["part"] in ("A", "down") else "up"
        pair = pairs[_layer_name(matched["layer"])]
        if part in pair:
            raise refused(f"has {pair[part][:120]!r} twice")
        pair[part] = key
    if not pairs:
        raise refused("has no low-rank matrices", _READ)
    layers = (_layer(name, pairs[name], tensors, alphas, targets) for name in sorted(pairs))
    return AdapterFile(tuple(layers))


def _open(data: bytes) -> tuple[dict[str, Any], Alphas]:
    if int.from_bytes(data[:8], "little") > MAX_HEADER and len(data) > MAX_HEADER:
        raise refused(f"has a header of more than {MAX_HEADER >> 20} MiB")
    try:
        tensors = dict(safetensors.deserialize(data))  # type: ignore[no-untyped-call]
    except safetensors.SafetensorError as error:
        raise refused(
            f"is not a safetensors file: {error}",
            "write it with safe_serialization=True; pickled tensors are not read",
        ) from None
    header, _ = _split(data)
    return tensors, Alphas.of(header.get("__metadata__") or {}, tensors)


def _split(data: bytes) -> tuple[dict[str, Any], bytes]:
    """The header of a file that has been checked, and all that follows it."""
    size = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + size]), data[8 + size :]


def embed_alpha(
    data: bytes, *, alpha: float | None = None, config: Mapping[str, Any] | None = None
) -> bytes:
    """The same tensors in a file that says its alpha; the bytes themselves where nothing is given.

    Args:
        alpha: of all layers.
        config: what PEFT wrote beside the file, ``adapter_config.json``.

    Raises:
        InvalidInput: the file says its alpha already, or the config has what is not read.
    """
    if alpha is None and config is None:
        return data
    if _open(data)[1].known:
        raise refused("has its alpha already", "leave out the alpha that you give")
    header, tensors = _split(data)
    metadata = dict(header.pop("__metadata__", None) or {})
    if config is not None:
        check_config(config)
        told = {key: value for key, value in config.items() if value is not None}
        parts = ("transformer", "text_encoder")
        both = {f"{part}.{key}": value for part in parts for key, value in told.items()}
        metadata[CONFIG] = json.dumps(both, sort_keys=True)
    if alpha is not None:
        metadata[ALPHA] = json.dumps(number_of(alpha))
    written = json.dumps({"__metadata__": metadata, **header}).encode()
    written += b" " * (-len(written) % 8)  # tensors begin at a multiple of eight
    return len(written).to_bytes(8, "little") + written + tensors


def _layer_name(key: str) -> str:
    """A layer's name from a file of either kind, old or new."""
    name = key.removeprefix("base_model.model.")
    for part in ("transformer.", "text_encoder."):
        if name.startswith(part):
            inner = name.removeprefix(part).removeprefix("base_model.model.")
            break
    else:
        part, inner = "transformer.", name
        if re.match(r"(text_model\.)?encoder\.layers\.", name):
            part = "text_encoder."
    if part == "text_encoder." and not inner.startswith("text_model."):
        inner = f"text_model.{inner}"  # as transformers calls it where CLIP has no projection
    return f"{part}{inner}"


def _layer(
    name: str,
    pair: Mapping[str, str],
    tensors: Mapping[str, Any],
    alphas: Alphas,
    targets: Targets | None,
) -> AdapterLayer:
    if len(pair) < 2:
        missing = "B" if "down" in pair else "A"
        raise refused(f"has no lora_{missing} for {name}")
    down, up = (_shape(pair[part], tensors) for part in ("down", "up"))
    if len(down) != 2 or len(up) != 2 or down[0] != up[1]:
        raise refused(f"{name} has matrices {list(down)} and {list(up)}, which do not fit together")
    rank = down[0]
    if not 1 <= rank <= MAX_RANK:
        raise refused(f"{name} has the rank {rank}; 1 to {MAX_RANK} are allowed")
    if targets is not None:
        _check_target(name, (down[1], up[0]), targets)
    alpha, divisor = alphas.of_layer(name, pair["down"], rank)
    return AdapterLayer(name, rank, alpha, divisor, pair["down"], pair["up"])


def _shape(key: str, tensors: Mapping[str, Any]) -> tuple[int, ...]:
    """After a look at all values."""
    tensor = tensors[key]
    if tensor["dtype"] not in _EXPONENTS:
        known = ", ".join(_EXPONENTS)
        raise refused(f"{key} has the type {tensor['dtype']}; allowed are {known}")
    kind, exponent = _EXPONENTS[tensor["dtype"]]
    bits: NDArray[Any] = np.frombuffer(tensor["data"], kind)
    if bool(((bits & exponent) == exponent).any()):  # all ones: infinite, or not a number
        raise refused(f"{key} has values that are not finite")
    return tuple(tensor["shape"])


def _check_target(name: str, shape: tuple[int, int], targets: Targets) -> None:
    if name not in targets:
        raise refused(
            f"changes {name}, which is not a linear layer of this checkpoint",
            "is it an adapter for another checkpoint?",
        )
    if targets[name] != shape:
        raise refused(
            f"{name} has {shape[0]} inputs and {shape[1]} outputs; "
            f"the checkpoint's has {targets[name][0]} and {targets[name][1]}",
            "it was trained for a checkpoint of another size",
        )
