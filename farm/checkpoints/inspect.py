"""A checkpoint on disk: checked without loading it, and described."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from farm.checkpoints.layout import (
    COMPONENTS,
    CONFIGS,
    PIPELINES,
    WEIGHTS,
    digest,
    missing,
    read_json,
    read_tensors,
    weight_files,
)
from farm.checkpoints.references import resolve
from farm.errors import InvalidCheckpoint
from farm.spec import CheckpointInfo, ModelSizes, TextEncoderSizes, TransformerSizes


@dataclass(frozen=True)
class Checkpoint:
    """A directory that passed every check; nothing of it has been loaded."""

    path: Path
    info: CheckpointInfo
    description: str = ""

    def config(self, component: str) -> dict[str, Any]:
        return read_json(self.path / component / CONFIGS[component])

    def weights(self, component: str) -> list[Path]:
        return weight_files(self.path / component, WEIGHTS[component])


def inspect_checkpoint(ref: str | Path, data: Path | None = None) -> Checkpoint:
    """Find and check a checkpoint.

    Args:
        ref: a directory, a built-in name, ``owner/name@<commit>`` or what ``farm checkpoint push``
            says.
        data: the farm's folder, where what is fetched from a store is kept.

    Raises:
        InvalidCheckpoint: what is missing, damaged or refused, and the way out.
    """
    path, known = resolve(ref, data)
    _check_index(path)
    parts = {name: read_json(path / name / file) for name, file in CONFIGS.items()}
    for name, config in parts.items():
        if "auto_map" in config:
            raise InvalidCheckpoint(
                f"{name}/{CONFIGS[name]} names custom code, which the farm never runs",
                hint="remove auto_map; only the classes of diffusers and transformers are known",
            )
    _check_tokenizer(path / "tokenizer")
    for name, stem in WEIGHTS.items():
        tensors = read_tensors(path / name, stem)
        for tensor, shape in _expected(name, parts).items():
            if tensor not in tensors:
                raise InvalidCheckpoint(f"{name} has no tensor {tensor!r}; it is of another model")
            if tensors[tensor] != shape:
                raise InvalidCheckpoint(
                    f"{name} tensor {tensor!r} has the shape {list(tensors[tensor])}, "
                    f"but its config.json says {list(shape)}"
                )
    notes = read_json(path / "farm.json") if (path / "farm.json").is_file() else {}
    if known is None:
        name = str(notes.get("name") or path.name)
        identity, revision = re.sub(r"[^\w.-]+", "-", name).strip("-") or "checkpoint", digest(path)
    else:
        identity, revision = known
    info = _info(identity, revision, parts, notes)
    _check_fit(info, parts)
    return Checkpoint(path, info, str(notes.get("description", "")))


def _check_tokenizer(folder: Path) -> None:
    files = [folder / name for name in ("tokenizer.json", "vocab.json")]
    found = [file for file in files if file.is_file()]
    if not found:
        raise missing(files[-1])
    if files[0] not in found and not (folder / "merges.txt").is_file():
        raise missing(folder / "merges.txt")
    for file in found:
        read_json(file)


def _check_index(path: Path) -> None:
    index = read_json(path / "model_index.json")
    named = index.get("_class_name")
    if not isinstance(named, str) or named not in PIPELINES:
        raise InvalidCheckpoint(
            f"model_index.json names {named!r}, not an aMUSEd pipeline",
            hint=f"known: {', '.join(sorted(PIPELINES))}; custom code is never run",
        )
    for name, value in index.items():
        if name.startswith("_"):
            continue
        library, kinds = COMPONENTS.get(name, ("", frozenset()))
        if not isinstance(value, list) or len(value) != 2 or value[0] != library:
            raise InvalidCheckpoint(
                f"model_index.json: {name} is {value!r}, which the farm does not know",
                hint=f"expected [{library!r}, {sorted(kinds)[0]!r}]; custom code is never run"
                if kinds
                else "custom code and further components are never loaded",
            )
        if value[1] not in kinds:
            raise InvalidCheckpoint(
                f"model_index.json: {name} is of the class {value[1]!r}, "
                f"not {' or '.join(sorted(kinds))}"
            )
    for name in COMPONENTS:
        if name not in index:
            raise InvalidCheckpoint(f"model_index.json does not name the {name}")


def _expected(name: str, parts: Mapping[str, Mapping[str, Any]]) -> dict[str, tuple[int, ...]]:
    """A few shapes that tie each component's weights to its configuration."""
    config = parts[name]

    def number(key: str) -> int:
        return _whole(name, config, key)

    if name == "transformer":
        return {
            "embed.embeddings.weight": (number("vocab_size"), number("in_channels")),
            "encoder_proj.weight": (number("hidden_size"), number("encoder_hidden_size")),
            "mlm_layer.conv2.weight": (number("codebook_size"), number("in_channels"), 1, 1),
        }
    if name == "vqvae":
        side = number("vq_embed_dim" if config.get("vq_embed_dim") else "latent_channels")
        return {"quantize.embedding.weight": (number("num_vq_embeddings"), side)}
    return {"text_projection.weight": (number("projection_dim"), number("hidden_size"))}


def _info(
    identity: str,
    revision: str,
    parts: Mapping[str, Mapping[str, Any]],
    notes: Mapping[str, Any],
) -> CheckpointInfo:
    transformer, vqvae, text = parts["transformer"], parts["vqvae"], parts["text_encoder"]
    codebook = _whole("transformer", transformer, "codebook_size")
    vocab = _whole("transformer", transformer, "vocab_size")
    mask = _whole("scheduler", parts["scheduler"], "mask_token_id")
    hidden = _whole("transformer", transformer, "encoder_hidden_size")
    pooled = _whole("transformer", transformer, "cond_embed_dim")
    channels = vqvae.get("block_out_channels")
    if not isinstance(channels, list) or not channels:
        raise InvalidCheckpoint("vqvae/config.json: block_out_channels is not a list of numbers")
    factor = 2 ** (len(channels) - 1)
    downsample = bool(transformer.get("downsample"))
    native = _whole("transformer", transformer, "sample_size") * factor
    guidance = notes.get("default_guidance_scale", 10.0 if downsample else 4.0)
    if not isinstance(guidance, int | float) or not 0 <= guidance <= 100:
        raise InvalidCheckpoint("farm.json: default_guidance_scale is not a number from 0 to 100")
    return CheckpointInfo(
        id=identity,
        revision=revision,
        pixel_factor=factor,
        size_multiple=2 * factor if downsample else factor,
        native_height=native,
        native_width=native,
        default_guidance=float(guidance),
        vocab_size=vocab,
        codebook_size=codebook,
        mask_token_id=mask,
        text_tokens=_whole("text_encoder", text, "max_position_embeddings"),
        pooled_dim=pooled,
        hidden_dim=hidden,
        sizes=_sizes(parts),
        vocabulary=tuple(str(notes.get("vocabulary", "")).split()),
        **({"example": str(notes["example"])} if "example" in notes else {}),
    )


def _sizes(parts: Mapping[str, Mapping[str, Any]]) -> ModelSizes:
    found = {
        name: {key: _whole(name, parts[name], key) for key in kind.model_fields}
        for name, kind in (("transformer", TransformerSizes), ("text_encoder", TextEncoderSizes))
    }
    return ModelSizes.model_validate(found)


def _check_fit(info: CheckpointInfo, parts: Mapping[str, Mapping[str, Any]]) -> None:
    """Refuse components that do not fit together."""
    transformer, vqvae, text = parts["transformer"], parts["vqvae"], parts["text_encoder"]
    codebook, mask = info.codebook_size, info.mask_token_id
    for held, message in (
        (
            codebook == vqvae.get("num_vq_embeddings"),
            "the transformer's codebook_size is not the vqvae's num_vq_embeddings",
        ),
        (codebook <= 2**16, "a codebook of more than 65,536 codes does not fit 16-bit tokens"),
        (
            codebook <= mask < info.vocab_size,
            "the scheduler's mask_token_id lies in the codebook, or is too large",
        ),
        (
            info.hidden_dim == text.get("hidden_size"),
            "the text encoder's width is not the transformer's",
        ),
        (
            info.pooled_dim == text.get("projection_dim"),
            "the text projection is not the transformer's",
        ),
        (
            bool(transformer.get("downsample")) == bool(transformer.get("upsample")),
            "the transformer samples down without sampling up, or up without down",
        ),
        (
            bool(vqvae.get("lookup_from_codebook")),
            "the vqvae's lookup_from_codebook is not set",
        ),
    ):
        if not held:
            raise InvalidCheckpoint(message, hint="its components belong to different models")


def _whole(component: str, config: Mapping[str, Any], key: str) -> int:
    value = config.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise InvalidCheckpoint(f"{component}/{CONFIGS[component]}: {key} is {value!r}")
    return value
