"""A checked checkpoint's parts in memory, each once, and the name of the numbers they compute."""

import importlib.metadata
import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from accelerate import init_empty_weights
from accelerate.utils import set_module_tensor_to_device
from diffusers import UVit2DModel, VQModel
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, CLIPTokenizer

from farm.checkpoints.inspect import Checkpoint
from farm.errors import InvalidCheckpoint, InvalidInput
from farm.spec import CheckpointInfo
from farm_workers.engine.model import Transformer
from farm_workers.engine.reference import ReferenceTransformer

ENGINE_VERSION = 2  # raised when the same row starts to give other tokens or bytes
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

Denoiser = Transformer | ReferenceTransformer


@dataclass(frozen=True)
class Parts:
    """The checkpoint's components, shared by the three modes."""

    info: CheckpointInfo
    device: torch.device
    dtype: torch.dtype
    tokenizer: Any
    text_encoder: nn.Module
    transformer: Denoiser
    vqvae: Any
    masking_schedule: str
    padded: bool  # tiles always run at their whole width

    @classmethod
    def of(
        cls,
        info: CheckpointInfo,
        modules: Mapping[str, Any],
        device: torch.device,
        dtype: torch.dtype,
        *,
        together: bool,
        model: str = "farm",
        masking_schedule: str = "cosine",
        padded: bool | None = None,
    ) -> Self:
        """The engine's parts around loaded modules, whose weights are shared, not copied."""
        unet = modules["transformer"]
        transformer: Denoiser
        if model == "diffusers":
            transformer = ReferenceTransformer(unet, info.text_tokens, together=together)
        else:
            with torch.inference_mode(), torch.device("meta"):
                transformer = Transformer(unet.config, info.text_tokens)
            transformer.load_state_dict(unet.state_dict(), assign=True)
            transformer.eval().requires_grad_(False)
            with torch.inference_mode():
                transformer.ready(together=together)
        return cls(
            info,
            device,
            dtype,
            modules["tokenizer"],
            modules["text_encoder"],
            transformer,
            modules["vqvae"],
            masking_schedule,
            padded=device.type != "cpu" if padded is None else padded,
        )


def load_parts(
    checkpoint: Checkpoint, device: torch.device, dtype: str, *, model: str, strict: bool
) -> Parts:
    """The parts of a checkpoint on disk."""
    if dtype not in DTYPES:
        raise InvalidInput(f"{dtype!r} is none of {', '.join(DTYPES)}", field="dtype")
    return Parts.of(
        checkpoint.info,
        load_modules(checkpoint, device, DTYPES[dtype]),
        device,
        DTYPES[dtype],
        together=device.type != "cpu" or not strict,
        padded=device.type != "cpu" and strict,
        model=model,
        masking_schedule=checkpoint.config("scheduler").get("masking_schedule", "cosine"),
    )


def load_modules(
    checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype
) -> dict[str, Any]:
    """Weights go from the safetensors files to the device, tensor by tensor, and nowhere else."""
    text_config = CLIPTextConfig(**checkpoint.config("text_encoder"))
    makers: dict[str, Callable[[], nn.Module]] = {
        "text_encoder": lambda: CLIPTextModelWithProjection(text_config),
        "vqvae": lambda: VQModel.from_config(checkpoint.config("vqvae")),
        "transformer": lambda: UVit2DModel.from_config(checkpoint.config("transformer")),
    }
    modules: dict[str, Any] = {
        name: _load(checkpoint, name, make, device, dtype) for name, make in makers.items()
    }
    modules["tokenizer"] = CLIPTokenizer.from_pretrained(checkpoint.path / "tokenizer")
    return modules


def _load(
    checkpoint: Checkpoint,
    name: str,
    make: Callable[[], nn.Module],
    device: torch.device,
    dtype: torch.dtype,
) -> nn.Module:
    try:
        with init_empty_weights():
            module = make()
    except (KeyError, TypeError, ValueError) as error:
        raise InvalidCheckpoint(f"{name}/config.json: {error}") from None
    wanted = {key: tensor.shape for key, tensor in module.state_dict().items()}
    for file in checkpoint.weights(name):
        try:
            with safe_open(file, framework="pt", device="cpu") as tensors:
                for key in tensors.keys():  # noqa: SIM118  (no iterator)
                    if key.endswith("position_ids"):
                        continue  # a constant that older exports carry
                    if wanted.pop(key, None) is None:
                        raise InvalidCheckpoint(f"{name} has a tensor {key!r} of another model")
                    value = tensors.get_tensor(key)
                    # Without clear_cache=False it collects garbage after every tensor.
                    set_module_tensor_to_device(
                        module, key, device, value=value, dtype=dtype, clear_cache=False
                    )
        except (SafetensorError, OSError, ValueError) as error:
            raise InvalidCheckpoint(f"{name}/{Path(file).name}: {error}") from None
    if wanted:
        raise InvalidCheckpoint(f"{name} has no tensor {sorted(wanted)[0]!r}")
    return module.to(device).eval().requires_grad_(False)


def numerics_class(parts: Parts, *, model: str, width: str) -> str:
    """Inside one class the same row gives the same tokens and the same bytes."""
    if parts.device.type == "cpu":
        kind = torch.backends.cpu.get_cpu_capability().replace(" ", "")
        device = f"cpu {platform.machine()} {kind} x{torch.get_num_threads()}"
    else:
        device = torch.cuda.get_device_name(parts.device)
    versions = ", ".join(
        f"{name} {importlib.metadata.version(name)}"
        for name in ("torch", "diffusers", "transformers")
    )
    dtype = str(parts.dtype).removeprefix("torch.")
    return (
        f"{parts.info.name}; {dtype}; {device}; {versions}; engine {ENGINE_VERSION} {model} {width}"
    )
