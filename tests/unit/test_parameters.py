"""One table of parameters: what is made from it says the same everywhere."""

import inspect
from typing import Any, get_args

import pytest

from farm.errors import InvalidInput
from farm.job import OPTIONS, Format, JobOptions, Priority
from farm.spec import PARAMETERS, Mode, RenderRequest, Rng
from farm_client.parameters import Options, RenderParameters


def test_the_sdk_takes_every_parameter_and_option() -> None:
    assert {"prompt", *RenderParameters.__annotations__} == set(RenderRequest.model_fields)
    assert {"seed", *Options.__annotations__} == set(JobOptions.model_fields)


@pytest.mark.parametrize(
    ("annotation", "kind"),
    [
        (RenderParameters.__annotations__["mode"], Mode),
        (RenderParameters.__annotations__["rng"], Rng),
        (Options.__annotations__["priority"], Priority),
        (Options.__annotations__["format"], Format),
    ],
)
def test_the_sdk_knows_every_choice(annotation: Any, kind: type[Mode]) -> None:
    members = get_args(annotation)
    literal = members if isinstance(members[0], str) else get_args(members[0])
    assert literal == tuple(kind)


def test_every_parameter_and_option_has_a_flag_with_its_default() -> None:
    from farm.cli.submit import submit

    flags = inspect.signature(submit).parameters
    assert set(RenderRequest.model_fields) | set(JobOptions.model_fields) <= set(flags)
    steps = get_args(flags["num_inference_steps"].annotation)[1]
    assert steps.param_decls == ("--steps",)
    assert steps.help == "Denoising steps (1 to 1,000). Default: 12."


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("steps", "num_inference_steps"),
        ("crop", "micro_conditioning_crop_coord"),
        ("generator", "seed"),
        ("prompt_embeds", "embeds"),
        ("hieght", "height"),
    ],
)
def test_other_names_of_a_parameter_lead_to_it(written: str, meant: str) -> None:
    with pytest.raises(InvalidInput) as error:
        RenderRequest.parse({"prompt": "x", written: 1})
    assert error.value.hint == f"did you mean {meant!r}?"


@pytest.mark.parametrize(
    ("parameter", "value"),
    [
        ("height", 7), ("height", 4097), ("height", 64.5), ("num_inference_steps", 0),
        ("guidance_scale", 100.1), ("strength", 0), ("seed", 2**64), ("temperature", [0, 101]),
        ("micro_conditioning_crop_coord", [0, -1]), ("micro_conditioning_crop_coord", 3),
    ],
)  # fmt: skip
def test_a_value_outside_the_limits_is_told_them(parameter: str, value: Any) -> None:
    with pytest.raises(InvalidInput) as error:
        RenderRequest.parse({"prompt": "x", "image": "0" * 64, parameter: value})
    assert error.value.message == f"must be {PARAMETERS[parameter].wanted}; got {value!r}"


def test_an_option_outside_its_limits_is_told_them() -> None:
    with pytest.raises(InvalidInput, match="must be a whole number, at least 0; got -1"):
        JobOptions.parse({"max_failed": -1})
    assert OPTIONS["max_failed"].wanted == "a whole number, at least 0"


@pytest.mark.parametrize("parameter", sorted(RenderRequest.model_fields.keys() - {"prompt"}))
def test_null_is_not_given(parameter: str) -> None:
    """Files made from tables have it where a row says nothing."""
    assert RenderRequest.parse({"prompt": "x", parameter: None}) == RenderRequest(prompt="x")


def test_null_does_not_hide_a_name_that_is_not_known() -> None:
    with pytest.raises(InvalidInput, match="stepz"):
        RenderRequest.parse({"prompt": "x", "stepz": None})
