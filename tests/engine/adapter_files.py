"""Random adapters: files as diffusers' example writes them, and rows that name them."""

import hashlib
from dataclasses import dataclass, replace
from random import Random
from typing import Any

import safetensors.torch
import torch
from cases import Case

from farm.formats.adapter_file import embed_alpha
from farm.spec import AdapterScale, Row
from farm_workers.engine import Engine

KINDS = ("to_q", "to_k", "to_v", "to_out.0", "proj", "net.2", "linear", "linear_1", "kv_mapper")
TYPES = (torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class File:
    """An adapter's file, and what is in it."""

    data: bytes
    alpha: int | None
    tensors: dict[str, torch.Tensor]

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.data).hexdigest()


def random_file(
    random: Random, engine: Engine, *, rank: int | None = None, everything: bool = False
) -> File:
    """Of what training changes, or of anything that can be changed; half of them with text."""
    targets = engine._model.adapter_targets  # type: ignore[attr-defined]
    kinds = ("to_q", "to_k", "to_v") if random.random() < 0.5 else tuple(random.sample(KINDS, 5))
    names = [name for name in targets if everything or name.endswith(kinds)]
    if random.random() < 0.5 or everything:
        names += [name for name in targets if name.endswith((".q_proj", ".v_proj", ".fc1"))]
    rank = rank or random.choice([1, 2, 4, 7, 16, 20])
    noise = torch.Generator().manual_seed(random.getrandbits(32))
    kind = random.choice(TYPES)
    tensors = {}
    for name in dict.fromkeys(names):
        inputs, outputs = targets[name]
        down = torch.randn(rank, inputs, generator=noise) / inputs**0.5
        up = torch.randn(outputs, rank, generator=noise) / rank**0.5
        tensors |= {
            f"{name}.lora_A.weight": down.to(kind),
            f"{name}.lora_B.weight": up.to(kind),
        }
    alpha = random.choice([None, 1, 8])
    data = safetensors.torch.save(tensors, {"format": "pt"})
    return File(embed_alpha(data, alpha=alpha), alpha, tensors)


def adapted(engine: Engine, case: Case, *named: tuple[File, float]) -> Case:
    """The case with adapters, in that order."""
    scales = tuple(AdapterScale(sha256=file.sha256, scale=scale) for file, scale in named)
    spec = case.row.spec.model_copy(update={"adapters": scales})
    given: dict[str, Any] = {file.sha256: engine.read_adapter(file.data) for file, _ in named}
    row = Row.of(spec, case.row.index)
    return replace(case, row=row, inputs={**case.inputs, "adapters": given})
