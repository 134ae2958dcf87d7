"""The alpha of an adapter, and the places where files carry it.

Trained matrices are scaled by alpha / rank (Hu et al., arXiv 2106.09685). The file that diffusers'
training example saves does not say its alpha, and a loader takes the rank then.
"""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from farm.errors import InvalidInput

CONFIG = "lora_adapter_metadata"  # diffusers' key in the file's header, for PEFT's config
ALPHA = "lora_alpha"  # the farm's key, for a number
UNREAD = ("use_dora", "lora_bias", "modules_to_save", "trainable_token_indices")
_FLOATS = {"F16": "<f2", "F32": "<f4", "F64": "<f8", "I64": "<i8", "I32": "<i4"}


@dataclass(frozen=True)
class Alphas:
    """What a file says of its alphas."""

    number: float | None = None  # for all layers
    configs: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # PEFT's, by part
    tensors: Mapping[str, float] = field(default_factory=dict)  # by key

    @classmethod
    def of(cls, metadata: Mapping[str, str], tensors: Mapping[str, Any]) -> "Alphas":
        number = number_of(metadata[ALPHA]) if ALPHA in metadata else None
        configs = _by_part(_config(metadata[CONFIG])) if CONFIG in metadata else {}
        single = {
            key: float(np.frombuffer(tensor["data"], _FLOATS[tensor["dtype"]])[0])
            for key, tensor in tensors.items()
            if key.endswith(".alpha")
            and tensor["dtype"] in _FLOATS
            and 0 < len(tensor["data"]) <= 8
        }
        return cls(number, configs, {key: number_of(value) for key, value in single.items()})

    @property
    def known(self) -> bool:
        told = any("lora_alpha" in config for config in self.configs.values())
        return self.number is not None or told or bool(self.tensors)

    def of_layer(self, name: str, down: str, rank: int) -> tuple[float, float]:
        """Alpha, and what it is divided by."""
        part, _, layer = name.partition(".")
        stem = down.rpartition(".lora")[0]
        config = self.configs.get(part, {})
        divisor = math.sqrt(rank) if config.get("use_rslora") else float(rank)
        if f"{stem}.alpha" in self.tensors:
            return self.tensors[f"{stem}.alpha"], divisor
        if self.number is not None:
            return self.number, divisor
        for ending, alpha in (config.get("alpha_pattern") or {}).items():
            if _matches(ending, layer):
                return number_of(alpha), divisor
        return number_of(config.get("lora_alpha", rank)), divisor


def _matches(ending: str, layer: str) -> bool:
    """PEFT's ``get_pattern_key`` for names; a stranger's regular expressions are not run."""
    name = ending.removeprefix("^").replace("\\.", ".")
    if not re.fullmatch(r"[\w.]+", name):
        raise refused(f"has the alpha_pattern {_shown(ending)}; only names of layers are read")
    return layer == name or (layer.endswith(f".{name}") and not ending.startswith("^"))


def _config(text: str) -> dict[str, Any]:
    try:
        config = json.loads(text)
    except (ValueError, RecursionError):
        raise refused(f"{CONFIG} in its header is not JSON") from None
    if not isinstance(config, dict):
        raise refused(f"{CONFIG} in its header is not an object")
    return config


def _by_part(config: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """``transformer.lora_alpha`` and its like, by what stands before the dot."""
    found: dict[str, dict[str, Any]] = {}
    for key, value in config.items():
        part, _, name = key.partition(".")
        found.setdefault(part, {})[name] = value
    for one in found.values():
        check_config(one)
    return found


def check_config(config: Mapping[str, Any]) -> None:
    """Refuse what PEFT can train and the engine does not compute."""
    kind = config.get("peft_type") or "LORA"
    if kind != "LORA":
        raise refused(f"is of the kind {_shown(kind)}; only LORA is read")
    if not isinstance(config.get("alpha_pattern") or {}, dict):
        raise refused("has an alpha_pattern that is not an object")
    for key in UNREAD:
        if config.get(key):
            raise refused(f"was trained with {key}, which is not read")


def number_of(value: Any) -> float:
    """An alpha as a number above 0."""
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        raise refused(f"has the alpha {_shown(value)}, which is not a number") from None
    if not math.isfinite(number) or number <= 0:
        raise refused(f"has the alpha {_shown(value)}; it must be above 0")
    return number


def _shown(value: Any) -> str:
    return repr(value)[:80]


def refused(message: str, hint: str | None = None) -> InvalidInput:
    return InvalidInput(message, field="adapters", hint=hint)
