"""Tensors as people send them."""

import json
import pickle
import struct
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from farm.errors import InvalidInput, TooLarge
from farm.formats.tensors import MAX_TENSOR_BYTES, read_embeds, read_latents
from farm.spec import CheckpointInfo

INFO = CheckpointInfo(
    id="tiny", revision="1", pixel_factor=16, size_multiple=16, native_height=64, native_width=96,
    default_guidance=4, vocab_size=8256, codebook_size=8192, mask_token_id=8255, text_tokens=7,
    pooled_dim=5, hidden_dim=3,
)  # fmt: skip
POOLED = np.linspace(-1, 1, 5, dtype=np.float32)
HIDDEN = np.linspace(-2, 2, 21, dtype=np.float32).reshape(7, 3)
BOTH = {"prompt_embeds": POOLED, "encoder_hidden_states": HIDDEN}
NEGATIVE = {"negative_prompt_embeds": -POOLED, "negative_encoder_hidden_states": -HIDDEN}


def save(**tensors: Any) -> bytes:
    return safetensors.numpy.save(tensors)


def raw(name: str, kind: str, shape: list[int], data: bytes) -> bytes:
    header = json.dumps({name: {"dtype": kind, "shape": shape, "data_offsets": [0, len(data)]}})
    return struct.pack("<Q", len(header)) + header.encode() + data


def test_a_token_file_of_the_farm_can_start_another_render() -> None:
    tokens = np.arange(24, dtype=np.int32).reshape(4, 6)
    assert (read_latents(save(tokens=tokens), INFO, 64, 96) == tokens).all()


def refused(data: bytes) -> InvalidInput:
    with pytest.raises(InvalidInput) as caught:
        read_latents(data, INFO, 64, 96)
    assert caught.value.field == "latents"
    assert "\n" not in str(caught.value)
    return caught.value


@pytest.mark.parametrize("kind", ["uint16", "int16", "int32", "uint32", "int64", "uint64"])
def test_tokens_of_any_integer_type_are_read(kind: str) -> None:
    tokens = np.arange(24).reshape(4, 6)
    tokens[2, 3] = 8191 if kind == "int16" else INFO.mask_token_id
    for given in (tokens, tokens[None]):
        read = read_latents(save(latents=given.astype(kind)), INFO, 64, 96)
        assert (read.dtype, read.shape) == (np.int64, (4, 6))
        assert (read == tokens).all()


@pytest.mark.parametrize("wrong", [-1, 8192, 8254, 8256, 2**40, 2**63 - 1])
def test_tokens_out_of_range_are_refused(wrong: int) -> None:
    tokens = np.zeros((4, 6), np.int64)
    tokens[1, 1] = wrong
    assert f"has the token {wrong};" in refused(save(latents=tokens)).message


def test_a_huge_unsigned_token_is_refused() -> None:
    assert "has the token" in refused(save(latents=np.full((4, 6), 2**64 - 1, np.uint64))).message


def test_tokens_of_another_shape_are_refused() -> None:
    for shape in [(6, 4), (4, 7), (24,), (2, 4, 6), (0, 6), (1, 1, 4, 6)]:
        error = refused(save(latents=np.zeros(shape, np.int32)))
        assert "(4, 6) is needed" in error.message


@pytest.mark.parametrize("kind", ["float32", "float16", "bool"])
def test_tokens_that_are_no_integers_are_refused(kind: str) -> None:
    assert "has the type" in refused(save(latents=np.zeros((4, 6), kind))).message


def test_a_file_without_the_tensor_is_refused() -> None:
    assert "no tensor 'latents'" in refused(save(ids=np.zeros((4, 6), np.int32))).message


def test_a_tensor_nobody_knows_is_refused() -> None:
    tokens = np.zeros((4, 6), np.int32)
    error = refused(save(latents=tokens, extra=tokens))
    assert "unknown tensor 'extra'" in error.message


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x89PNG\r\n\x1a\n",
        pickle.dumps({"latents": [1, 2, 3]}),
        b"PK\3\4" + bytes(100),
        struct.pack("<Q", 2**63) + b"{}",
        struct.pack("<Q", 10) + b"not json!!",
        raw("latents", "I32", [4, 6], bytes(95)),
        raw("latents", "I32", [2**40, 2**40], bytes(96)),
        raw("latents", "X99", [4, 6], bytes(96)),
        save(latents=np.zeros((4, 6), np.int32))[:-1],
        save(latents=np.zeros((4, 6), np.int32)) + b"more",
    ],
)
def test_what_is_no_safetensors_file_is_refused(data: bytes) -> None:
    assert "is not a safetensors file" in refused(data).message


def test_a_file_that_is_too_large_is_refused() -> None:
    assert isinstance(refused(bytes(MAX_TENSOR_BYTES + 1)), TooLarge)


def test_embeddings_are_read_with_and_without_a_batch_dimension() -> None:
    for tensors in (BOTH, {name: value[None] for name, value in BOTH.items()}):
        embeds = read_embeds(save(**tensors), INFO)
        assert (embeds.prompt_embeds == POOLED).all()
        assert (embeds.encoder_hidden_states == HIDDEN).all()
        assert embeds.negative_prompt_embeds is None
        assert embeds.negative_encoder_hidden_states is None


def test_negative_embeddings_are_read() -> None:
    embeds = read_embeds(save(**BOTH, **NEGATIVE), INFO)
    assert embeds.negative_prompt_embeds is not None
    assert (embeds.negative_prompt_embeds == -POOLED).all()


@pytest.mark.parametrize("kind", ["float16", "float64"])
def test_other_floats_become_float32(kind: str) -> None:
    embeds = read_embeds(save(**{k: v.astype(kind) for k, v in BOTH.items()}), INFO)
    assert embeds.prompt_embeds.dtype == np.float32
    assert np.allclose(embeds.prompt_embeds, POOLED, atol=1e-3)


def test_bfloat16_is_read() -> None:
    values = np.array([1.0, -2.5, 0.0, 3.140625, 100.0], np.float32)
    halves = (values.view(np.uint32) >> 16).astype("<u2").tobytes()
    header = json.dumps(
        {
            "prompt_embeds": {"dtype": "BF16", "shape": [5], "data_offsets": [0, 10]},
            "encoder_hidden_states": {"dtype": "BF16", "shape": [7, 3], "data_offsets": [10, 52]},
        }
    )
    data = struct.pack("<Q", len(header)) + header.encode() + halves + bytes(42)
    embeds = read_embeds(data, INFO)
    assert (embeds.prompt_embeds == values).all()
    assert embeds.prompt_embeds.dtype == np.float32


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"prompt_embeds": np.full(5, np.nan, np.float32)}, "not finite"),
        ({"prompt_embeds": np.full(5, np.inf, np.float32)}, "not finite"),
        ({"prompt_embeds": np.full(5, 1e300)}, "not finite"),
        ({"prompt_embeds": np.zeros(6, np.float32)}, "has the shape (6,)"),
        ({"prompt_embeds": np.zeros(5, np.int32)}, "has the type I32"),
        ({"encoder_hidden_states": np.zeros((8, 3), np.float32)}, "(7, 3) is needed"),
        ({"negative_prompt_embeds": POOLED}, "has one of"),
        ({"prompt": POOLED}, "unknown tensor 'prompt'"),
    ],
)
def test_embeddings_that_do_not_fit_are_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        read_embeds(save(**{**BOTH, **changes}), INFO)
    assert said in caught.value.message
    assert caught.value.field == "embeds"


def test_both_embeddings_are_needed() -> None:
    with pytest.raises(InvalidInput, match="no tensor 'encoder_hidden_states'"):
        read_embeds(save(prompt_embeds=POOLED), INFO)
