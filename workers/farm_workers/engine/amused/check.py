"""Whether a checkpoint would load: its models are built without weights, as for rendering."""

from typing import Any

import torch
from torch import nn

from farm.checkpoints.inspect import Checkpoint
from farm.checkpoints.layout import WEIGHTS, read_tensors
from farm.errors import InvalidCheckpoint
from farm_workers.engine.amused import AmusedModel, empty_module, load_tokenizer
from farm_workers.engine.device import Device


def check_loads(checkpoint: Checkpoint) -> None:
    """Build every part and compare it with the headers of its files; reads no weights.

    Raises:
        InvalidCheckpoint: the first value, tensor or shape that loading would refuse.
    """
    modules: dict[str, Any] = {name: empty_module(checkpoint, name) for name in WEIGHTS}
    for name, module in modules.items():
        _compare(checkpoint, name, module.eval().requires_grad_(False))
    modules["tokenizer"] = load_tokenizer(checkpoint)
    try:
        with torch.inference_mode():
            AmusedModel(checkpoint.info, modules, Device("meta"), torch.float32)
    except Exception as error:
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise InvalidCheckpoint(f"its parts do not make a model: {reason}") from None


def _compare(checkpoint: Checkpoint, name: str, module: nn.Module) -> None:
    wanted = {key: tuple(tensor.shape) for key, tensor in module.state_dict().items()}
    for key, shape in read_tensors(checkpoint.path / name, WEIGHTS[name]).items():
        if key.endswith("position_ids"):
            continue  # a constant that older exports carry
        expected = wanted.pop(key, None)
        if expected is None:
            raise InvalidCheckpoint(f"{name} has a tensor {key!r} of another model")
        if expected != shape:
            raise InvalidCheckpoint(
                f"{name} tensor {key!r} has the shape {list(shape)}, but its config.json says "
                f"{list(expected)}"
            )
    if wanted:
        raise InvalidCheckpoint(f"{name} has no tensor {sorted(wanted)[0]!r}")
