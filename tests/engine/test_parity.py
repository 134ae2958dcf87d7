"""Rows of rng="torch" are diffusers' single calls, token for token."""

import inspect
import re
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from cases import Case, MakeCheckpoint, draw, random_case
from oracle import Oracle
from reference import ReferenceModel

from farm_workers.bench.pipelines import PIPELINES
from farm_workers.engine import Engine

ROOT = Path(__file__).parents[2]

CONFIGURATIONS: list[dict[str, Any]] = [
    {"num_hidden_layers": 1},
    {"num_hidden_layers": 2, "downsample": True, "seed": 1},
    {"num_hidden_layers": 2, "hidden_size": 64, "use_bias": True, "codebook_size": 300},
    {"num_hidden_layers": 1, "num_res_blocks": 2, "downsample": True, "use_bias": True},
    {"num_hidden_layers": 1, "ln_elementwise_affine": False, "block_num_heads": 4},
    {"num_hidden_layers": 3, "in_channels": 48, "num_res_blocks": 2, "codebook_size": 2048},
    {"num_hidden_layers": 1, "block_out_channels": 96, "in_channels": 32, "block_num_heads": 3},
    {"num_hidden_layers": 1, "layer_norm_eps": 1e-3, "downsample": True, "seed": 7},
]
CASES_OF_EACH = 6  # two of every mode


@pytest.mark.parametrize("number", range(len(CONFIGURATIONS)))
def test_every_row_has_the_tokens_of_a_single_diffusers_call(
    make_checkpoint: MakeCheckpoint, number: int
) -> None:
    path = make_checkpoint(**CONFIGURATIONS[number])
    engine, oracle = Engine.load(path, threads=1), Oracle(path)
    random = Random(number)
    modes = ["text2img", "img2img", "inpaint"] * (CASES_OF_EACH // 3)
    cases = [random_case(random, engine.checkpoint, rng="torch", mode=mode) for mode in modes]
    for case, done in zip(cases, draw(engine, *cases), strict=True):
        assert done.error is None
        np.testing.assert_array_equal(
            done.tokens, oracle.tokens(case.row, **case.inputs), err_msg=_describe(case)
        )


def test_the_decoded_picture_is_diffusers_own(engine: Engine, checkpoint: Any) -> None:
    """Of the modes that show only what was decoded; test_differences has inpainting."""
    oracle, random = Oracle(checkpoint), Random(5)
    modes = ["text2img", "img2img"]
    cases = [random_case(random, engine.checkpoint, rng="torch", mode=mode) for mode in modes]
    for case, done in zip(cases, draw(engine, *cases), strict=True):
        np.testing.assert_array_equal(done.pixels, oracle.pixels(case.row, **case.inputs))


def test_uvit2dmodel_itself_gives_the_same_tokens(make_checkpoint: MakeCheckpoint) -> None:
    path = make_checkpoint(**CONFIGURATIONS[1])
    own, reference = Engine.load(path, threads=1), Engine(ReferenceModel(path))
    random = Random(11)
    modes = ["text2img", "img2img", "inpaint"]
    cases = [random_case(random, own.checkpoint, rng="farm-1", mode=mode) for mode in modes]
    for first, second in zip(draw(own, *cases), draw(reference, *cases), strict=True):
        np.testing.assert_array_equal(first.tokens, second.tokens)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_draws_nearly_float32_s_tokens(
    make_checkpoint: MakeCheckpoint, dtype: str
) -> None:
    checkpoint = make_checkpoint(num_hidden_layers=1, seed=1)
    full, half = (Engine.load(checkpoint, threads=1, dtype=name) for name in ("float32", dtype))
    random = Random(3)
    modes = ["text2img", "img2img", "inpaint"] * 3
    cases = [
        random_case(random, full.checkpoint, rng="farm-1", mode=mode, small=True) for mode in modes
    ]
    same = [
        float((one.tokens == other.tokens).mean())
        for one, other in zip(draw(half, *cases), draw(full, *cases), strict=True)
    ]
    assert np.median(same) == 1.0
    assert np.mean(same) > 0.9


def test_every_parameter_of_the_pipelines_is_in_the_readme() -> None:
    calls = (inspect.signature(pipeline.__call__) for pipeline in PIPELINES.values())
    names = {name for call in calls for name in call.parameters} - {"self"}
    assert len(names) > 20
    readme = (ROOT / "README.md").read_text("utf-8")
    assert {name for name in names if f"`{name}" not in readme} == set()


def test_every_test_that_the_table_of_parity_names_exists() -> None:
    table = (ROOT / "docs/parity.md").read_text("utf-8")
    named = re.findall(r"`([\w/]+\.py)::(\w+)`", table)
    assert len(named) > 20
    for file, test in named:
        path = ROOT / file if file.startswith("tests/") else ROOT / "tests" / file
        assert f"def {test}(" in path.read_text("utf-8"), f"{file}::{test}"


def _describe(case: Case) -> str:
    return case.row.spec.canonical()
