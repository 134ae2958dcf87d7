"""What a checkpoint's configurations say of it, and whether they belong together."""

from collections.abc import Mapping
from typing import Any

from farm.errors import InvalidCheckpoint
from farm.spec import CheckpointInfo

CONFIGS: Mapping[str, str] = {
    "scheduler": "scheduler_config.json",
    "text_encoder": "config.json",
    "tokenizer": "tokenizer_config.json",
    "transformer": "config.json",
    "vqvae": "config.json",
}


def expected_tensors(
    name: str, parts: Mapping[str, Mapping[str, Any]]
) -> dict[str, tuple[int, ...]]:
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
        side = config.get("vq_embed_dim") or number("latent_channels")
        return {"quantize.embedding.weight": (number("num_vq_embeddings"), int(side))}
    return {"text_projection.weight": (number("projection_dim"), number("hidden_size"))}


def describe(
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
        raise InvalidCheckpoint("vqvae/config.json: block_out_channels is no list of numbers")
    for held, message in (
        (
            codebook == vqvae.get("num_vq_embeddings"),
            "the transformer's codebook_size is not the vqvae's num_vq_embeddings",
        ),
        (codebook <= 2**16, "a codebook of more than 65,536 codes does not fit 16-bit tokens"),
        (codebook <= mask < vocab, "the scheduler's mask_token_id is no token beside the codebook"),
        (hidden == text.get("hidden_size"), "the text encoder's width is not the transformer's"),
        (pooled == text.get("projection_dim"), "the text projection is not the transformer's"),
        (
            bool(transformer.get("downsample")) == bool(transformer.get("upsample")),
            "the transformer samples down without sampling up, or up without down",
        ),
        (bool(vqvae.get("lookup_from_codebook")), "the vqvae does not look codes up"),
    ):
        if not held:
            raise InvalidCheckpoint(message, hint="its components belong to different models")
    factor = 2 ** (len(channels) - 1)
    downsample = bool(transformer.get("downsample"))
    native = _whole("transformer", transformer, "sample_size") * factor
    guidance = notes.get("default_guidance_scale", 10.0 if downsample else 4.0)
    if not isinstance(guidance, int | float) or not 0 <= guidance <= 100:
        raise InvalidCheckpoint("farm.json: default_guidance_scale is no number from 0 to 100")
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
    )


def _whole(component: str, config: Mapping[str, Any], key: str) -> int:
    value = config.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise InvalidCheckpoint(f"{component}/{CONFIGS[component]}: {key} is {value!r}")
    return value
