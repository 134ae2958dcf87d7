"""The code of docs/engine.md runs as it stands there."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

PAGE = (Path(__file__).parents[2] / "docs/engine.md").read_text(encoding="utf-8")
SCRIPT, NOTEBOOK, DRAW, DATASET = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)


def _run(code: str) -> dict[str, Any]:
    names: dict[str, Any] = {}
    exec(code, names)
    return names


def test_the_script_leaves_its_pictures_and_tells_of_the_wrong_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    _run(SCRIPT)
    assert {file.name for file in tmp_path.iterdir()} == {"0-0.png", "1-0.png", "1-1.png"}
    assert capsys.readouterr().out.startswith("2 error[invalid] guidance_scale")


def test_the_notebook_draws_in_three_modes() -> None:
    pictures = _run(NOTEBOOK)["pictures"]
    assert {key: one.size for key, one in pictures.items()} == dict.fromkeys(range(3), (64, 64))


def test_the_class_for_ray_data_takes_and_gives_batches() -> None:
    assert re.search(r"Draw,\s+fn_constructor_args=\(\"shapes-64\",\)", DATASET)
    draw = _run(DRAW)["Draw"]("shapes-64")
    batch = {"prompt": np.array(["a red circle", "a blue star"]), "seed": np.array([1, 2])}
    found = draw(batch)
    assert found["error"].tolist() == ["", ""]
    assert found["pixels"].shape == (2, 64, 64, 3)
    assert found["pixels"].std() > 10
