"""What a row says besides its parameters."""

import json
from typing import Any

import pytest

from farm.errors import InvalidInput, TooLarge
from farm.job import OPTIONS
from farm.metadata import MAX_METADATA_BYTES, split_metadata
from farm.spec import RenderRequest


def kept(row: dict[str, Any]) -> Any:
    text = split_metadata({"prompt": "a star", **row})[1]
    return None if text is None else json.loads(text)


@pytest.mark.parametrize(
    ("row", "metadata"),
    [
        ({}, None),
        ({"metadata": {}}, None),
        ({"metadata": None, "label": None}, None),
        ({"id": "007", "label": 3, "ok": True, "tags": ["a", "b"]},
         {"id": "007", "label": 3, "ok": True, "tags": ["a", "b"]}),
        ({"metadata": {"id": 7}, "label": "x"}, {"id": 7, "label": "x"}),
        ({"exif": {"iso": 100}, "boxes": [[1, 2]]}, {"exif": '{"iso":100}', "boxes": "[[1,2]]"}),
        ({"metadata": {"prompt": "the old one"}}, {"prompt": "the old one"}),
        ({"prompt_id": 1, "image_id": 2, "weight": 0.5, "name": "n"},
         {"prompt_id": 1, "image_id": 2, "weight": 0.5, "name": "n"}),
    ],
)  # fmt: skip
def test_what_is_not_a_parameter_is_kept(row: dict[str, Any], metadata: Any) -> None:
    assert kept(row) == metadata


def test_parameters_stay_parameters() -> None:
    row = {
        "prompt": "x", "seed": 7, "id": 1, "cross_attention_kwargs": {"scale": 0.5},
        "adapters": [{"adapter": "a" * 64}],
    }  # fmt: skip
    parameters, _ = split_metadata(row)
    assert parameters == {k: v for k, v in row.items() if k != "id"}
    assert RenderRequest.parse(parameters).seed == 7


@pytest.mark.parametrize(
    ("key", "hint"),
    [
        ("promt", "prompt"), ("Prompt", "prompt"), ("widht", "width"), ("heigth", "height"),
        ("steps", "num_inference_steps"), ("n", "num_images"), ("mask", "mask_image"),
        ("cfg_scale", "guidance_scale"), ("CFG Scale", "guidance_scale"), ("model", "checkpoint"),
        ("negative-prompt", "negative_prompt"), ("generator", "seed"), ("seeds", "seed"),
    ],
)  # fmt: skip
def test_a_key_that_means_a_parameter_is_refused_by_name(key: str, hint: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        kept({key: 1})
    assert refused.value.field == key
    assert refused.value.hint == f"did you mean {hint!r}? for a file: --column {hint}={key}"
    with pytest.raises(InvalidInput) as refused:
        split_metadata({"prompt": "a star", key: 1}, columns=False)
    assert refused.value.hint == f"did you mean {hint!r}?"


@pytest.mark.parametrize("key", sorted(OPTIONS.keys() - {"name", "seed"}))
def test_an_option_of_the_job_is_not_a_column(key: str) -> None:
    with pytest.raises(InvalidInput, match="of the whole job") as refused:
        kept({key: "urgent"})
    assert refused.value.hint == f"to keep a file's column: --column metadata={key}"


def test_a_column_stands_in_one_place() -> None:
    with pytest.raises(InvalidInput, match="in the row and in its metadata"):
        kept({"id": 1, "metadata": {"id": 2}})


@pytest.mark.parametrize("value", [7, "x", ["a"]])
def test_metadata_are_an_object(value: Any) -> None:
    with pytest.raises(InvalidInput, match="is an object"):
        kept({"metadata": value})


def test_metadata_have_a_limit_and_the_largest_column_is_named() -> None:
    fits = MAX_METADATA_BYTES - len('{"a":""}')
    assert kept({"a": "x" * fits}) == {"a": "x" * fits}
    with pytest.raises(TooLarge) as refused:
        kept({"id": 1, "a": "x" * fits})
    assert "'a'" in (refused.value.hint or "")


@pytest.mark.parametrize("key", ["", "a\nb", "x" * 201])
def test_a_name_that_nothing_can_show_is_refused(key: str) -> None:
    with pytest.raises(InvalidInput, match="cannot be printed"):
        kept({key: 1})


def test_half_a_character_is_refused() -> None:
    with pytest.raises(InvalidInput, match="surrogate"):
        kept({"note": "\ud800"})


@pytest.mark.parametrize("text", ["1e999", "[1, -1e999]", '{"a": 1e999}', '[["x", 1e999]]'])
def test_a_number_that_is_not_finite_is_refused(text: str) -> None:
    for row in ({"score": json.loads(text)}, {"metadata": {"score": json.loads(text)}}):
        with pytest.raises(InvalidInput, match="'score' is not finite"):
            kept(row)


def test_without_a_prompt_the_columns_are_named() -> None:
    with pytest.raises(InvalidInput, match="caption, id") as refused:
        split_metadata({"caption": "a star", "id": 1})
    assert refused.value.field == "prompt"
    assert "--column" in (refused.value.hint or "")


def test_in_a_single_call_only_an_id_and_metadata_are_kept() -> None:
    row = {"prompt": "x", "id": 7, "metadata": {"label": "a"}}
    assert split_metadata(row, columns=False)[1] == '{"id":7,"label":"a"}'
    with pytest.raises(InvalidInput) as refused:
        split_metadata({"prompt": "x", "webhook": "y"}, columns=False)
    assert (refused.value.field, refused.value.hint) == (
        "webhook", "your own data go into metadata",
    )  # fmt: skip
