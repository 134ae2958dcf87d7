"""A checkpoint's parts: configurations and tensors, checked against each other."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from farm.checkpoints.inspect import Checkpoint
from farm.checkpoints.layout import WEIGHTS, read_tensors
from farm.errors import InvalidCheckpoint
from farm_workers.engine.amused.text_encoder import TextEncoder
from farm_workers.engine.amused.tokenizer import Tokenizer
from farm_workers.engine.amused.transformer import Transformer
from farm_workers.engine.amused.vq import VqModel

Module = TypeVar("Module", bound=nn.Module)


class Part(NamedTuple):
    """What a module is made of."""

    config: Mapping[str, Any]  # its config.json
    tensors: Mapping[str, Tensor]  # by the names of diffusers and transformers

    def build(self, kind: Callable[[Mapping[str, Any]], Module]) -> Module:
        """A module of that kind, ready to run, on these tensors and not on copies."""
        with torch.device("meta"):
            module = kind(self.config)
        module.load_state_dict(dict(self.tensors), assign=True)
        return module.eval().requires_grad_(False)


class Parts(NamedTuple):
    """All that draws; the scheduler has no weights."""

    transformer: Part
    vqvae: Part
    text_encoder: Part
    tokenizer: Tokenizer


def load_parts(checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype) -> Parts:
    """Weights go from the safetensors files to the device, tensor by tensor, and nowhere else.

    Raises:
        InvalidCheckpoint: as ``describe_parts``, or a file cannot be read.
    """
    described = describe_parts(checkpoint)
    loaded = {
        name: getattr(described, name)._replace(
            tensors=dict(_tensors(checkpoint, name, device, dtype))
        )
        for name in WEIGHTS
    }
    return described._replace(**loaded)


def describe_parts(checkpoint: Checkpoint) -> Parts:
    """The parts with tensors on no device; reads no weights.

    Raises:
        InvalidCheckpoint: a class does not take its values, or its files have other tensors.
    """
    parts: dict[str, Part] = {}
    for name in WEIGHTS:
        config = checkpoint.config(name)
        with named(f"{name}/config.json"):
            wanted = shapes(name, config)
        found = read_tensors(checkpoint.path / name, WEIGHTS[name])
        found = {key: shape for key, shape in found.items() if not _is_constant(key)}
        _compare(name, wanted, found)
        tensors = {key: torch.empty(shape, device="meta") for key, shape in found.items()}
        parts[name] = Part(config, tensors)
    with named("tokenizer"):
        tokenizer = Tokenizer(checkpoint.path / "tokenizer")
    return Parts(**parts, tokenizer=tokenizer)


def shapes(name: str, config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Of the tensors that a part of that configuration has, by their names."""
    kinds: dict[str, Callable[[Mapping[str, Any]], nn.Module]] = {
        "transformer": partial(Transformer, text_tokens=1),  # no tensor has their number
        "vqvae": VqModel,
        "text_encoder": TextEncoder,
    }
    with torch.device("meta"):
        module = kinds[name](config)
    return {key: tuple(one.shape) for key, one in module.state_dict().items()}


@contextlib.contextmanager
def named(what: str) -> Iterator[None]:
    """The libraries raise many unrelated classes for values that they do not take."""
    try:
        yield
    except Exception as error:
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        if isinstance(error, TypeError):
            reason = f"a value has the wrong type ({reason})"
        if isinstance(error, KeyError):
            reason = f"{reason} is missing"
        raise InvalidCheckpoint(f"{what}: {reason}") from None


def _compare(
    name: str, wanted: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]]
) -> None:
    """The tensors that a part has with those that its files' headers tell of."""
    for key, shape in found.items():
        if key not in wanted:
            raise InvalidCheckpoint(f"{name} has a tensor {key!r} of another model")
        if wanted[key] != shape:
            raise InvalidCheckpoint(
                f"{name} tensor {key!r} has the shape {list(shape)}, but its config.json says "
                f"{list(wanted[key])}"
            )
    if missing := sorted(wanted.keys() - found.keys()):
        raise InvalidCheckpoint(f"{name} has no tensor {missing[0]!r}")


def _is_constant(key: str) -> bool:
    """One that older exports carry, and that nothing reads."""
    return key.endswith("position_ids")


def _tensors(
    checkpoint: Checkpoint, name: str, device: torch.device, dtype: torch.dtype
) -> Iterator[tuple[str, Tensor]]:
    for file in checkpoint.weights(name):
        try:
            with safe_open(file, framework="pt", device="cpu") as tensors:
                for key in tensors.keys():  # noqa: SIM118  (no iterator)
                    if not _is_constant(key):
                        yield key, tensors.get_tensor(key).to(device, dtype)
        except (SafetensorError, OSError, ValueError) as error:
            raise InvalidCheckpoint(f"{name}/{file.name}: {error}") from None
