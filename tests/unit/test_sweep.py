"""Sweeps, and the job files that hold them."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from farm.cli.input_files import Reading
from farm.cli.job_file import JobFile, read_job_file
from farm.cli.parse_values import parse_values
from farm.errors import InvalidInput, TooLarge
from farm.job import JobOptions
from farm.metadata import split_metadata
from farm.spec import RenderRequest
from farm_client.ndjson import completed, read_lines
from farm_client.sweep import Sweep


def renders(source: Any, sweep: Sweep, **defaults: Any) -> list[dict[str, Any]]:
    return [json.loads(line.text) for line in completed(read_lines(source), defaults, sweep)]


def test_every_value_meets_every_other_in_the_order_of_nested_loops() -> None:
    sweep = Sweep.parse({"guidance_scale": [3, 6], "seed": range(1, 3)})
    found = renders(["a", "b"], sweep)
    assert [(one["prompt"], one["guidance_scale"], one["seed"]) for one in found] == [
        ("a", 3, 1), ("a", 3, 2), ("a", 6, 1), ("a", 6, 2),
        ("b", 3, 1), ("b", 3, 2), ("b", 6, 1), ("b", 6, 2),
    ]  # fmt: skip
    assert len(sweep) == 4


def test_zipped_lists_walk_together_inside_the_matrix() -> None:
    sweep = Sweep.parse({"seed": [1, 2]}, {"height": [64, 128], "width": [128, 64]})
    assert list(sweep.combinations()) == [
        {"seed": 1, "height": 64, "width": 128}, {"seed": 1, "height": 128, "width": 64},
        {"seed": 2, "height": 64, "width": 128}, {"seed": 2, "height": 128, "width": 64},
    ]  # fmt: skip
    assert len(sweep) == 4


def test_without_a_sweep_a_row_is_one_render() -> None:
    assert list(Sweep.parse().combinations()) == [{}]
    assert not Sweep.parse()


def test_a_row_that_sets_what_is_swept_is_refused() -> None:
    lines = completed(
        read_lines([{"prompt": "a", "seed": 1}, {"prompt": "b"}]), {}, Sweep.parse({"seed": [1, 2]})
    )
    first, *rest = lines
    assert first.error is not None
    assert (first.error.field, first.error.line) == ("seed", 1)
    assert len(rest) == 2


@pytest.mark.parametrize(
    ("matrix", "zipped", "words"),
    [
        ({"stps": [1]}, None, "stps"), ({"steps": [1]}, None, "num_inference_steps"),
        ({"seed": 7}, None, "list"), ({"seed": "12"}, None, "list"), ({"seed": []}, None, "empty"),
        ([1], None, "by parameter"), ({"seed": [1]}, {"seed": [1]}, "matrix and in zip"),
        (None, {"seed": [1], "width": [8, 16]}, "seed 1, width 2"),
    ],
)  # fmt: skip
def test_a_wrong_sweep_is_refused(matrix: Any, zipped: Any, words: str) -> None:
    with pytest.raises(InvalidInput, match=words):
        Sweep.parse(matrix, zipped)


def test_a_sweep_has_a_limit() -> None:
    with pytest.raises(TooLarge, match="10,000,000"):
        Sweep.parse({"seed": range(10_000), "num_inference_steps": range(1000)})


@pytest.mark.parametrize(
    ("parameter", "texts", "values"),
    [
        ("seed", ["1..4"], [1, 2, 3, 4]), ("seed", ["7"], [7]),
        ("seed", ["1..9..4,20"], [1, 5, 9, 20]),
        ("guidance_scale", ["3,6.5, 10"], [3, 6.5, 10]), ("seed", ["1", "2,3"], [1, 2, 3]),
        ("strength", ["0.2..0.8..0.2"], [0.2, 0.4, 0.6, 0.8]),
        ("temperature", ["2,0", "1"], [[2, 0], 1]),
        ("negative_prompt", ["ugly, blurry", "dark"], ["ugly, blurry", "dark"]),
    ],
)  # fmt: skip
def test_values_of_a_flag_are_lists_and_ranges(
    parameter: str, texts: list[str], values: list[Any]
) -> None:
    assert parse_values(parameter, texts) == values


@pytest.mark.parametrize(
    "text", ["1..", "..4", "4..1", "1..4..0", "1..2..3..4", "a..b", "1..inf", "0..1e99", "1..4,x"]
)
def test_a_wrong_range_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        parse_values("seed", [text])
    assert refused.value.field == "seed"


def job(tmp_path: Path, text: str, name: str = "job.yaml") -> JobFile:
    (tmp_path / name).write_text(text)
    found = read_job_file(str(tmp_path / name), Reading())
    assert found is not None
    return found


def made(found: JobFile) -> list[dict[str, Any]]:
    lines = found.selection.of(found.lines)
    return [
        json.loads(line.text) if line.data is None else dict(line.data)
        for line in completed(lines, found.defaults, found.sweep)
    ]


JOB = """
name: bikes
priority: bulk
seed: 5
defaults: {num_inference_steps: 3}
prompts: [a bike, {prompt: a boat, id: 7}]
matrix:
  guidance_scale: [3, 6]
  seed: 1..2
"""


def test_a_job_file_says_everything(tmp_path: Path) -> None:
    found = job(tmp_path, JOB)
    assert found.options == {"name": "bikes", "priority": "bulk", "seed": 5}
    rows = made(found)
    assert len(rows) == 8
    assert rows[0] == {
        "num_inference_steps": 3, "prompt": "a bike", "guidance_scale": 3, "seed": 1,
    }  # fmt: skip
    assert rows[7] == {
        "num_inference_steps": 3, "prompt": "a boat", "id": 7, "guidance_scale": 6, "seed": 2,
    }  # fmt: skip


def test_json_says_the_same_as_yaml(tmp_path: Path) -> None:
    import yaml

    written = json.dumps(yaml.safe_load(JOB))
    assert made(job(tmp_path, written, "job.json")) == made(job(tmp_path, JOB))


def test_a_job_file_names_files_beside_it(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "a.csv").write_text("caption,image\na,x.png\nb,y.png\n")
    found = job(
        tmp_path,
        "input: set\ncolumns: {prompt: caption}\nlimit: 1\n"
        "defaults: {mask_image: m.png}\nmatrix: {latents: [l.safetensors]}\n",
    )
    (line,) = completed(found.selection.of(found.lines), found.defaults, found.sweep)
    assert line.data == {
        "prompt": "a", "image": "x.png", "mask_image": str(tmp_path / "m.png"),
        "latents": tmp_path / "l.safetensors",
    }  # fmt: skip
    assert line.base == tmp_path / "set"


def test_a_job_may_be_a_sweep_alone(tmp_path: Path) -> None:
    assert made(job(tmp_path, "zip: {prompt: [a, b], seed: 3,4}\n".replace("3,4", "[3, 4]"))) == [
        {"prompt": "a", "seed": 3}, {"prompt": "b", "seed": 4},
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("promts: [a]", "unknown key"), ("steps: 3", "unknown key"), ("- a", "not a job"),
        ("height: 64\nprompts: [a]", "defaults"), ("prompts: a", "not a list"),
        ("prompts: [a]\nrenders: [b]", "not both"), ("prompts: [a]\nprompts: [b]", "line 2"),
        ("prompts: [a", "not YAML"), ("prompts: [a]\nlimit: 0", "from 1 on"),
        ("prompts: [a]\ncolumns: {prompt: x}", "only an input"),
        ("prompts: [a]\nmatrix: {stps: [1]}", "stps"), ("prompts: [a]\nmatrix: 3", "by name"),
        ("input: none.csv", "no file"), ("!!python/object/apply:os.system [ls]", "not YAML"),
        ("prompts: [a]\nmatrix: {seed: 4..1}", "range"), ("{}: 1", "not YAML"),
    ],
)  # fmt: skip
def test_a_wrong_job_file_is_refused(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(InvalidInput, match=words):
        job(tmp_path, text)


def test_a_json_file_of_renders_is_not_a_job(tmp_path: Path) -> None:
    for text in ('{"prompt": "a", "seed": 1}', '[{"prompt": "a"}]', '{"prompt": "a"}\n' * 2, "{"):
        path = tmp_path / "a.json"
        path.write_text(text)
        assert read_job_file(str(path), Reading()) is None


ROOT = Path(__file__).parents[2]


def test_the_job_file_in_the_docs_can_be_used(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "inputs.md").read_text(encoding="utf-8")
    (text,) = re.findall(r"```yaml\n(.*?)```", page, flags=re.DOTALL)
    (tmp_path / "prompts.jsonl").write_text((ROOT / "prompts.jsonl").read_text(encoding="utf-8"))
    found = job(tmp_path, text)
    assert JobOptions.parse(found.options).name == "stars"
    rows = made(found)
    assert len(rows) == 4 * 3 * 2
    for row in rows:
        RenderRequest.parse(split_metadata(row)[0])


def test_the_sample_file_is_right_and_fits_the_sweep_in_the_readme() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert "farm submit prompts.jsonl --guidance-scale 3,6,10 --seed 1..4" in readme
    sweep = Sweep.parse({"guidance_scale": [3, 6, 10], "seed": [1, 2, 3, 4]})
    with (ROOT / "prompts.jsonl").open("rb") as file:
        lines = list(completed(read_lines(file), {}, sweep))
    assert len(lines) == 8 * 12
    for line in lines:
        parameters, metadata = split_metadata(json.loads(line.text))
        RenderRequest.parse(parameters)
        assert json.loads(metadata or "{}").keys() == {"id", "category"}
