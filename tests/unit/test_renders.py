"""Renders by columns say the same as the renders one by one."""

import hashlib
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from farm.ingest.chunks import Cutter, TaskLimits
from farm.job import Chunk, Format
from farm.renders import NumberedSpec, Renders
from farm.spec import MAX_SEED, AdapterScale, Mode, RenderSpec, canonical_json

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=30) | st.sampled_from(
    [',"prompt":null', ',"seed":0,', '","prompt":', "\\", '"', "\u2028"]
)
SEEDS = st.integers(0, MAX_SEED)
FEWER = settings(max_examples=60)
SPEC = """{"v":1,"checkpoint":"c@1","mode":"text2img","prompt":"x","negative_prompt":"","height":64,
"width":64,"num_inference_steps":12,"guidance_scale":4.0,"temperature":[2.0,0.0],"seed":1,
"num_images":1,"image":null,"mask_image":null,"latents":null,"embeds":null,"strength":null,
"micro_conditioning_aesthetic_score":6.0,"micro_conditioning_crop_coord":[0,0],"rng":"farm-1"}"""


@st.composite
def specs(draw: st.DrawFn) -> RenderSpec:
    asset = st.none() | st.just("0" * 64)
    adapters = st.sampled_from([(), ({"sha256": "1" * 64, "scale": 0.5},)])
    return RenderSpec.model_validate(
        {
            "checkpoint": draw(st.sampled_from(['a,"prompt":null@1', "b@2"])),
            "mode": draw(st.sampled_from(["text2img", "img2img"])),
            "prompt": draw(st.none() | TEXTS),
            "negative_prompt": draw(st.none() | TEXTS),
            "height": draw(st.sampled_from([8, 16])),
            "width": 8,
            "num_inference_steps": draw(st.integers(1, 40)),
            "guidance_scale": draw(st.sampled_from([0.0, -0.0, 4.0])),
            "temperature": (2.0, 0.0),
            "seed": draw(SEEDS),
            "num_images": draw(st.integers(1, 64)),
            "image": draw(asset),
            "mask_image": draw(asset),
            "latents": None,
            "embeds": draw(asset),
            "strength": draw(st.sampled_from([None, 1.0])),
            "micro_conditioning_aesthetic_score": 6.0,
            "micro_conditioning_crop_coord": (0, 0),
            "rng": "farm-1",
            "adapters": draw(adapters),
        }
    )


def spec(**given: Any) -> RenderSpec:
    return RenderSpec.model_validate_json(SPEC).model_copy(update=given)


KINDS = [
    *(spec(num_images=many, num_inference_steps=steps) for many in (1, 2, 64) for steps in (1, 30)),
    *(spec(height=height) for height in (8, 16)),
    *(spec(guidance_scale=scale) for scale in (0.0, -0.0)),
    spec(adapters=(AdapterScale(sha256="1" * 64, scale=0.5),), mode=Mode.IMG2IMG),
]


@st.composite
def numbered(draw: st.DrawFn, most: int = 12) -> list[NumberedSpec]:
    """Variants of a few renders, in any order."""
    metadata = st.sampled_from([None, None, '{"id":7}'])
    row = st.tuples(st.sampled_from(KINDS), TEXTS, SEEDS, metadata)
    return [
        NumberedSpec(2 * number, kind.variant(prompt, seed), text)
        for number, (kind, prompt, seed, text) in enumerate(draw(st.lists(row, max_size=most)))
    ]


def chunk(renders: Any) -> Chunk:
    return Chunk(
        job="j", number=3, tenant="t", sink="images", format=Format.PNG, lane="a", renders=renders
    )


@FEWER
@given(specs(), st.none() | TEXTS, SEEDS)
def test_a_variant_is_the_render_that_its_fields_make(
    made: RenderSpec, prompt: str | None, seed: int
) -> None:
    data = {**made.model_dump(mode="json"), "prompt": prompt, "seed": seed}
    whole, variant = RenderSpec.model_validate(data), made.variant(prompt, seed)
    assert variant == whole
    assert variant.model_dump_json() == whole.model_dump_json()
    for one in (variant, whole, variant.model_copy(), made.model_copy(update=dict(whole))):
        text = canonical_json(whole.model_dump(mode="json"))
        assert one.canonical() == text
        assert one.sha256 == hashlib.sha256(text.encode()).hexdigest()
        assert (one.lane, one.assets) == (whole.lane, whole.assets)
        assert (one.row_steps, one.guided) == (whole.row_steps, whole.guided)
    other = variant.model_copy(update={"num_inference_steps": 41, "height": 24})
    assert (other.lane.height, other.first_step + other.row_steps) == (24, 41)
    assert json.loads(other.canonical())["height"] == 24


@FEWER
@given(numbered())
def test_columns_hold_the_renders_in_their_order(rows: list[NumberedSpec]) -> None:
    renders = Renders.of(rows)
    assert list(renders) == rows
    assert [renders[place] for place in range(len(rows))] == rows
    assert list(renders[1::2]) == rows[1::2]
    assert renders[1::2] == Renders.of(rows[1::2])
    assert renders.pictures == sum(one.spec.num_images for one in rows)
    assert renders.cost == sum(one.spec.cost for one in rows)
    assert [one.spec.canonical() for one in renders] == [one.spec.canonical() for one in rows]


@FEWER
@given(numbered())
def test_a_chunk_is_read_as_it_was_written_and_as_older_farms_wrote_it(
    rows: list[NumberedSpec],
) -> None:
    written = chunk(Renders.of(rows))
    assert Chunk.model_validate_json(written.model_dump_json()) == written
    older = json.loads(written.model_dump_json()) | {"v": 1}
    older["renders"] = [
        {"render": one.render, "spec": one.spec.model_dump(mode="json")}
        | ({} if one.metadata is None else {"metadata": one.metadata})
        for one in rows
    ]
    found = Chunk.model_validate_json(json.dumps(older))
    assert found.v == 1
    assert found.model_copy(update={"v": written.v}) == written


def test_a_damaged_chunk_is_refused() -> None:
    renders = Renders.of(NumberedSpec(n, spec().variant(str(n), n), "{}") for n in range(3))
    whole = json.loads(chunk(renders).model_dump_json())
    columns = whole["renders"].keys() - {"specs"}
    damages: list[dict[str, Any]] = [
        *({name: whole["renders"][name][:2]} for name in columns),
        *({name: []} for name in columns - {"metadata"}),
        *({name: [], "metadata": []} for name in columns - {"metadata"}),
        {"kinds": [0, 0, 1]},
        {"kinds": [0, -1, 0]},
        {"prompts": ["a", 2, "c"]},
        {"seeds": [1, 2, None]},
        {"specs": []},
        {"specs": [{"v": 1}]},
        {"more": 1},
    ]
    for damage in damages:
        with pytest.raises(ValidationError):
            Chunk.model_validate_json(json.dumps(whole | {"renders": whole["renders"] | damage}))
    for name in whole["renders"].keys() - {"metadata"}:
        less = {key: value for key, value in whole["renders"].items() if key != name}
        with pytest.raises(ValidationError):
            Chunk.model_validate_json(json.dumps(whole | {"renders": less}))


@FEWER
@given(
    numbered(most=40),
    st.integers(1, 200),
    st.floats(0, 2000) | st.sampled_from([float("inf"), 47.99999999999999]),
)
def test_renders_are_cut_as_if_each_was_added_to_a_task_until_it_is_full(
    rows: list[NumberedSpec], pictures: int, row_steps: float
) -> None:
    cutter = Cutter("j", "t", "images", Format.PNG, lambda lane: TaskLimits(pictures, row_steps))
    found = [(one.number, one.lane, list(one.renders)) for one in cutter.cut(2, Renders.of(rows))]
    wanted: list[tuple[int, str, list[NumberedSpec]]] = []
    for lane in dict.fromkeys(one.spec.lane for one in rows):
        held, done, cost = list[NumberedSpec](), 0, 0
        for one in rows:
            if one.spec.lane != lane:
                continue
            full = done + one.spec.num_images > pictures or cost + one.spec.cost > row_steps
            if not held or full:
                held, done, cost = [], 0, 0
                wanted.append((4000 + len(wanted), str(lane), held))
            held.append(one)
            done, cost = done + one.spec.num_images, cost + one.spec.cost
    assert found == wanted
