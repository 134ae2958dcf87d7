"""Adapters' files: what is read of them, and what is refused with one clear line."""

import contextlib
import json
import math
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st

from farm.errors import InvalidInput
from farm.formats.adapter_file import AdapterFile, embed_alpha, read_adapter_file

LAYER = "transformer.transformer_layers.0.attn1.to_q"
TARGETS = {LAYER: (8, 6), "text_encoder.text_model.encoder.layers.0.self_attn.q_proj": (8, 6)}


def matrices(layer: str = LAYER, rank: int = 2, down: str = "lora_A", up: str = "lora_B") -> Any:
    return {
        f"{layer}.{down}.weight": np.ones((rank, 8), np.float32),
        f"{layer}.{up}.weight": np.ones((6, rank), np.float32),
    }


def file_of(tensors: dict[str, Any], **metadata: str) -> bytes:
    return safetensors.numpy.save(tensors, metadata)


def read(tensors: dict[str, Any], **metadata: str) -> AdapterFile:
    return read_adapter_file(file_of(tensors, **metadata), TARGETS)


def test_a_file_may_say_null_for_no_metadata() -> None:
    """safetensors' own reader takes it."""
    data = file_of(matrices())
    size = int.from_bytes(data[:8], "little")
    header = {"__metadata__": None, **json.loads(data[8 : 8 + size])}
    text = json.dumps(header).encode()
    written = len(text).to_bytes(8, "little") + text + data[8 + size :]
    assert read_adapter_file(written, TARGETS) == read(matrices())
    assert read_adapter_file(embed_alpha(written, alpha=1), TARGETS).alpha == 1


@pytest.mark.parametrize(
    ("layer", "names"),
    [
        (LAYER, ("lora_A", "lora_B")),
        (LAYER, ("lora.down", "lora.up")),
        ("base_model.model.transformer_layers.0.attn1.to_q", ("lora_A", "lora_B")),
        (
            f"transformer.base_model.model.{LAYER.removeprefix('transformer.')}",
            ("lora_A", "lora_B"),
        ),
        ("transformer_layers.0.attn1.to_q", ("lora_A.default", "lora_B.default")),
    ],
)
def test_the_layouts_of_diffusers_and_peft_name_the_same_layer(
    layer: str, names: tuple[str, str]
) -> None:
    (found,) = read(matrices(layer, 2, *names)).layers
    assert (found.name, found.rank, found.alpha) == (LAYER, 2, 2)


@pytest.mark.parametrize(
    "layer",
    [
        "text_encoder.text_model.encoder.layers.0.self_attn.q_proj",
        "text_encoder.encoder.layers.0.self_attn.q_proj",
        "base_model.model.text_model.encoder.layers.0.self_attn.q_proj",
        "encoder.layers.0.self_attn.q_proj",
    ],
)
def test_the_text_encoder_s_layers_are_known_by_all_their_names(layer: str) -> None:
    assert read(matrices(layer)).layers[0].name in TARGETS


def test_alpha_is_the_rank_where_the_file_does_not_say_it() -> None:
    found = read(matrices(rank=4))
    assert (found.rank, found.alpha, found.targets) == (4, 4.0, ("to_q",))
    assert found.layers[0].scaling(0.5) == 0.5


def test_an_alpha_that_is_given_becomes_a_part_of_the_file() -> None:
    plain = file_of(matrices(rank=4))
    told = embed_alpha(plain, alpha=8)
    assert read_adapter_file(told, TARGETS).layers[0].scaling(1.0) == 2.0
    assert embed_alpha(plain) == plain
    before, after = (safetensors.numpy.load(one) for one in (plain, told))
    assert before.keys() == after.keys()
    assert all(np.array_equal(before[key], after[key]) for key in before)
    with pytest.raises(InvalidInput, match="has its alpha already"):
        embed_alpha(told, alpha=4)


def test_peft_s_own_config_tells_alphas_by_layer_and_how_they_are_scaled() -> None:
    tensors = {**matrices(rank=4), **matrices(LAYER.replace("_q", "_k"), rank=4)}
    config = {"peft_type": "LORA", "lora_alpha": 8, "alpha_pattern": {"to_k": 2}, "r": 4}
    told = embed_alpha(file_of(tensors), config=config)
    alphas = {layer.name[-1]: layer.alpha for layer in read_adapter_file(told).layers}
    assert alphas == {"q": 8, "k": 2}
    told = embed_alpha(file_of(tensors), config={**config, "use_rslora": True})
    assert read_adapter_file(told).layers[1].scaling(1.0) == 8 / math.sqrt(4)


def test_an_alpha_beside_its_matrices_is_used_for_them() -> None:
    tensors = {**matrices(rank=4), f"{LAYER}.alpha": np.array(16, np.float32)}
    assert read(tensors).layers[0].scaling(1.0) == 4.0


def _with(change: dict[str, Any]) -> dict[str, Any]:
    return {**matrices(), **change}


DOWN, UP = f"{LAYER}.lora_A.weight", f"{LAYER}.lora_B.weight"
INFINITE = np.full((2, 8), np.inf, np.float16)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"PK\x03\x04", "is not a safetensors file"),
        (file_of({f"{LAYER}.alpha": np.ones(1)}), "has no low-rank matrices"),
        (file_of(_with({"unet.conv.weight": np.ones(3)})), "unet.conv.weight"),
        (file_of({DOWN: np.ones((2, 8), np.float32)}), "has no lora_B for transformer"),
        (file_of({UP: np.ones((6, 2), np.float32)}), "has no lora_A for transformer"),
        (file_of(_with({UP: np.ones((6, 3), np.float32)})), "do not fit together"),
        (file_of(_with({UP: np.ones(6, np.float32)})), "do not fit together"),
        (file_of(matrices(rank=257)), "has the rank 257; 1 to 256"),
        (file_of(_with({DOWN: INFINITE})), "values that are not finite"),
        (file_of(_with({DOWN: np.ones((2, 8))})), "has the type F64"),
        (file_of(matrices(LAYER.replace("_q", "_out"))), "is not a linear layer of this"),
        (file_of(_with({DOWN: np.ones((2, 9), np.float32)})), "has 9 inputs and 6 outputs"),
        (
            file_of({**matrices(), **matrices(LAYER, down="lora.down", up="lora.up")}),
            "twice",
        ),
        (file_of(matrices(), lora_alpha="many"), "'many', which is not a number"),
        (file_of(matrices(), lora_alpha="nan"), "must be above 0"),
        (file_of(matrices(), lora_adapter_metadata="{"), "is not JSON"),
        (file_of(matrices(), lora_adapter_metadata="[]"), "is not an object"),
        (
            file_of(matrices(), lora_adapter_metadata=json.dumps({"transformer.use_dora": True})),
            "was trained with use_dora",
        ),
        (
            file_of(
                matrices(),
                lora_adapter_metadata=json.dumps({"transformer.alpha_pattern": {"(a+)+$": 2}}),
            ),
            "only names of layers are read",
        ),
    ],
)
def test_what_is_not_an_adapter_for_this_checkpoint_is_refused(data: bytes, message: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        read_adapter_file(data, TARGETS)
    assert refused.value.field == "adapters"
    assert message in refused.value.message
    assert "\n" not in str(refused.value)


def test_other_kinds_of_adapters_are_refused_by_their_config() -> None:
    with pytest.raises(InvalidInput, match="'LOHA'; only LORA"):
        embed_alpha(file_of(matrices()), config={"peft_type": "LOHA"})


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
KEYS = st.sampled_from(
    ["lora_alpha", "alpha_pattern", "use_rslora", "peft_type", "use_dora", "r", ""]
)
PATTERNS = st.dictionaries(st.sampled_from(["to_q", "^to_q", "a|b", "("]), JSON)


@given(st.dictionaries(KEYS, JSON | PATTERNS), JSON | st.text())
def test_nothing_in_a_strangers_header_does_more_than_be_refused_in_one_line(
    config: dict[str, Any], other: Any
) -> None:
    told = {f"transformer.{key}": value for key, value in config.items()}
    text = other if isinstance(other, str) else json.dumps(other)
    for call in (
        lambda: read(matrices(), lora_adapter_metadata=json.dumps(told)),
        lambda: read(matrices(), lora_adapter_metadata=text),
        lambda: read(matrices(), lora_alpha=text),
        lambda: embed_alpha(file_of(matrices()), config=config),
    ):
        refused = ""
        try:
            call()
        except InvalidInput as error:
            refused = error.message
        except UnicodeEncodeError:  # half a surrogate pair: safetensors does not write it
            continue
        assert "\n" not in refused
        assert len(refused) < 300


@given(st.lists(st.integers(0, 3), max_size=3), st.lists(st.integers(0, 3), max_size=3))
def test_matrices_of_any_shape_are_read_or_refused(down: list[int], up: list[int]) -> None:
    tensors = {
        f"{LAYER}.lora_A.weight": np.ones(down, np.float32),
        f"{LAYER}.lora_B.weight": np.ones(up, np.float32),
        f"{LAYER}.alpha": np.ones(down[:1], np.float32),
    }
    with contextlib.suppress(InvalidInput):
        assert read_adapter_file(file_of(tensors)).rank == down[0] == up[1]


def test_a_header_is_no_bomb() -> None:
    nested = file_of(matrices(), lora_adapter_metadata="[" * 100_000)
    with pytest.raises(InvalidInput, match="is not JSON"):
        read_adapter_file(nested)
    long = file_of(matrices(), lora_adapter_metadata=" " * 2**20)
    with pytest.raises(InvalidInput, match="header of more than 1 MiB"):
        read_adapter_file(long)
