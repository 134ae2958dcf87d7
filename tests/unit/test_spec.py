"""Requests and renders: limits, defaults, and the frozen form."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from farm.errors import InvalidInput
from farm.spec import (
    MAX_SEED,
    CheckpointInfo,
    Lane,
    Mode,
    RenderRequest,
    RenderSpec,
    Row,
    derived_seed,
)

INFO = CheckpointInfo(
    id="amused/amused-512", revision="abc", pixel_factor=16, size_multiple=32, native_height=512,
    native_width=512, default_guidance=10.0, vocab_size=8256, codebook_size=8192,
    mask_token_id=8255, text_tokens=77, pooled_dim=768, hidden_dim=768,
)  # fmt: skip
ASSET = "a" * 64


def resolve(**given: Any) -> RenderSpec:
    return RenderRequest.parse({"prompt": "x"} | given).resolve(INFO, seed=5)


def test_what_is_left_out_is_filled_in_from_the_checkpoint() -> None:
    spec = resolve()
    assert (spec.checkpoint, spec.mode, spec.height, spec.width) == (
        "amused/amused-512@abc", Mode.TEXT2IMG, 512, 512,
    )  # fmt: skip
    assert (spec.guidance_scale, spec.num_inference_steps, spec.temperature) == (10.0, 12, (2, 0))
    assert (spec.seed, spec.negative_prompt, spec.strength) == (5, "", None)


def test_the_mode_follows_from_the_pictures() -> None:
    assert resolve(image=ASSET).mode is Mode.IMG2IMG
    assert resolve(image=ASSET).strength == 0.5
    assert resolve(image=ASSET, mask_image=ASSET).mode is Mode.INPAINT
    assert resolve(image=ASSET, mask_image=ASSET).strength == 1.0


def test_the_same_render_has_the_same_hash_however_it_was_written() -> None:
    one = resolve(num_images_per_prompt=2, temperature=1.5, image=f"sha256:{ASSET}")
    other = resolve(num_images=2.0, temperature=[1.5, 0.01], image=ASSET, mode="img2img")
    assert one == other
    assert one.sha256 == other.sha256
    assert json.loads(one.canonical()) == one.model_dump(mode="json")
    assert RenderSpec.model_validate_json(one.canonical()) == one


def test_each_picture_has_the_next_seed_and_the_last_seed_wraps() -> None:
    spec = resolve(seed=MAX_SEED, num_images=3)
    assert [row.seed for row in spec.rows()] == [MAX_SEED, 0, 1]
    assert [row.spec for row in spec.rows()] == [spec] * 3
    assert Row.of(spec, 2).seed == 1


def test_strength_leaves_out_the_first_steps() -> None:
    spec = resolve(image=ASSET, strength=0.5, num_inference_steps=10, num_images=4)
    assert (spec.first_step, spec.row_steps, spec.cost) == (5, 5, 20)
    with pytest.raises(InvalidInput) as error:
        resolve(image=ASSET, strength=0.05, num_inference_steps=10)
    assert error.value.field == "strength"
    assert "0.1" in error.value.message


@pytest.mark.parametrize(
    ("size", "fitted"),
    [
        ((512, 512), (512, 512)),
        ((100, 333), (96, 320)),
        ((5, 5), (32, 32)),
        ((4000, 4000), (1024, 1024)),
    ],
)
def test_a_picture_is_fitted_to_a_size_that_can_be_rendered(
    size: tuple[int, int], fitted: tuple[int, int]
) -> None:
    assert INFO.fit_size(*size) == fitted


def test_a_size_is_refused_with_the_nearest_ones() -> None:
    with pytest.raises(InvalidInput) as error:
        resolve(height=500)
    assert error.value.hint == "try 480 or 512"
    with pytest.raises(InvalidInput, match="4096"):
        resolve(height=2048, width=2048)


def test_a_lane_survives_being_written_down() -> None:
    lane = resolve().lane
    assert Lane.parse(str(lane)) == lane


def test_embeddings_stand_for_the_prompt() -> None:
    spec = RenderRequest.parse({"embeds": ASSET}).resolve(INFO, seed=0)
    assert (spec.prompt, spec.negative_prompt, spec.assets) == (None, None, (ASSET,))
    for wrong in ({"embeds": ASSET, "prompt": "x"}, {"embeds": ASSET, "negative_prompt": "x"}, {}):
        with pytest.raises(InvalidInput):
            RenderRequest.parse(wrong)


@pytest.mark.parametrize(
    ("given", "field", "hint"),
    [
        ({"promt": "x"}, "promt", "did you mean 'prompt'?"),
        ({"guidance": 3}, "guidance", "did you mean 'guidance_scale'?"),
        ({"prompt": ["a"]}, "prompt", "one render per prompt"),
        ({"image": "cat.png"}, "image", "upload"),
    ],
)
def test_a_mistake_comes_with_a_hint(given: dict[str, Any], field: str, hint: str) -> None:
    with pytest.raises(InvalidInput) as error:
        RenderRequest.parse({"prompt": "x"} | given)
    assert error.value.field == field
    assert hint in str(error.value)


def adapters(**given: Any) -> list[tuple[str, float]]:
    request = RenderRequest.parse({"prompt": "x"} | given)
    spec = request.resolve(INFO, seed=5, adapters={"dots": "d" * 64, "points": "d" * 64})
    assert spec == RenderSpec.model_validate_json(spec.canonical())
    assert [row.spec.adapters for row in spec.rows()] == [spec.adapters] * spec.num_images
    return [(one.sha256, one.scale) for one in spec.adapters]


def test_adapters_are_resolved_with_their_whole_scale_in_their_order() -> None:
    asked = [{"adapter": "dots", "scale": 0.5}, {"adapter": f"sha256:{ASSET}"}]
    assert adapters(adapters=asked) == [("d" * 64, 0.5), (ASSET, 1.0)]
    assert adapters(adapters=asked[::-1], adapter_scale=-2) == [(ASSET, -2.0), ("d" * 64, -1.0)]
    assert adapters(adapters=asked, cross_attention_kwargs={"scale": 0.5}) == [
        ("d" * 64, 0.25), (ASSET, 0.5),
    ]  # fmt: skip
    assert adapters(adapters=[{"adapter": "dots", "scale": 0}]) == []
    assert adapters(adapters=None, cross_attention_kwargs=None, adapter_scale=1) == []


@pytest.mark.parametrize(
    ("given", "field", "message"),
    [
        ({"adapter_scale": 0.5}, "adapter_scale", "no adapter to scale; name one in adapters"),
        ({"cross_attention_kwargs": {"scale": 0.5}}, "adapter_scale", "no adapter to scale"),
        ({"cross_attention_kwargs": {"other": 1}}, None, 'cross_attention_kwargs: only {"scale"'),
        ({"adapters": "dots"}, "adapters", "must be a list of objects"),
        ({"adapters": [{"adapter": "dots"}] * 5}, "adapters", "names 5 adapters; at most 4"),
        ({"adapters": [{"adapter": "a b"}]}, "adapters", "number 1: 'a b' is not the name"),
        ({"adapters": [{"scale": 1}]}, "adapters", "number 1 does not say which adapter"),
        ({"adapters": [{"adapter": "dots", "sclae": 1}]}, "adapters", "unknown key 'sclae'"),
        ({"adapters": [{"adapter": "dots", "scale": 11}]}, "adapters", "scale must be less than"),
        ({"adapters": [{"adapter": "dots"}, {"adapter": "points"}]}, "adapters", "twice"),
        ({"adapters": [{"adapter": "lines"}]}, "adapters", "nothing says what 'lines' stands for"),
    ],
)
def test_a_wrong_adapter_is_told_which_and_why(
    given: dict[str, Any], field: str | None, message: str
) -> None:
    with pytest.raises(InvalidInput) as error:
        adapters(**given)
    assert error.value.field == field
    assert message in error.value.message


@pytest.mark.parametrize(
    ("given", "sha256"),
    [
        ({}, "9557f57f6830e106ed5eb53be4ee6a42e6d6ff67e8f493c11d12d1b54fea7b18"),
        (
            {"image": ASSET, "mask_image": ASSET, "seed": 7},
            "564b2a2350339135adca56dc227a95c33a595e329bc1b40f1ec9bef415a378d6",
        ),
        (
            {"image": ASSET, "strength": 0.7, "prompt": "a green star", "num_images": 3,
             "rng": "torch"},
            "0add6377fd825b112782de1eadb3e1a594f247da0992a58a36beda8d6576b54c",
        ),
    ],
)  # fmt: skip
def test_a_render_without_adapters_keeps_the_hash_that_it_had_before_there_were_any(
    given: dict[str, Any], sha256: str
) -> None:
    assert resolve(**given).sha256 == sha256
    adapted = resolve(**given, adapters=[{"adapter": ASSET}])
    assert adapted.sha256 != sha256
    assert adapted.lane == resolve(**given).lane


@given(st.integers(0, 2**53), st.integers(0, 10**9))
def test_a_derived_seed_is_safe_in_every_json_reader(seed: int, render: int) -> None:
    assert 0 <= derived_seed(seed, render) < 2**48
    assert derived_seed(seed, render) == derived_seed(seed, render)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


NAMES = st.sampled_from([*RenderRequest.model_fields, "promt"])


@given(st.dictionaries(NAMES, JSON, max_size=6) | JSON)
def test_no_json_does_more_than_be_refused_in_one_line(data: Any) -> None:
    try:
        request = RenderRequest.parse(data)
    except InvalidInput as error:
        refusal = error
    else:
        assert RenderRequest.model_validate(request.model_dump()) == request
        return
    assert "\n" not in refusal.message
