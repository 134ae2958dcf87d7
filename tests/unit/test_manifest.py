"""The manifest's rows, and the parquet files that keep them."""

import hashlib
import json

import numpy as np
import pyarrow.parquet as pq
import pytest
from fake_engine import INFO

from farm.errors import RenderError, StoreError
from farm.formats.manifest import ManifestRow, read_part, write_part
from farm.sinks.parts import part_forms
from farm.spec import MAX_SEED, RenderRequest

TOKENS = np.arange(24, dtype="<u2").tobytes()


def row(render: int, image: int = 0, **changes: object) -> ManifestRow:
    request = RenderRequest(prompt="ein “Fahrrad” 🚲\nmit Zeile", seed=MAX_SEED, num_images=2)
    spec = request.resolve(INFO, seed=0)
    return ManifestRow(
        job="j0-x", generation=1, render=render, image=image, file=f"data/{render}.png",
        sha256="ab" * 32, size=2**40, width=48, height=32, seed=MAX_SEED, numerics="class-a",
        spec_sha256=spec.sha256, spec=spec.canonical(), tokens=TOKENS,
        tokens_sha256=hashlib.sha256(TOKENS).hexdigest(), notes=("one", "two"),
    )._replace(**changes)  # fmt: skip  # type: ignore[arg-type]


def failed(render: int) -> ManifestRow:
    error = json.dumps(RenderError("not finite", hint="another seed").to_dict())
    return row(
        render, file=None, sha256=None, size=None, tokens=None, tokens_sha256=None, notes=(),
        error=error,
    )  # fmt: skip


def test_rows_come_back_as_they_were() -> None:
    rows = [row(0), row(0, 1), failed(1), row(2**40)]
    assert read_part(write_part(rows)) == rows


def test_the_order_in_which_pictures_finish_leaves_no_trace() -> None:
    rows = [row(render, image) for render in range(20) for image in range(2)]
    assert write_part(rows) == write_part(rows[::-1])
    assert read_part(write_part(rows[::-1])) == rows


def test_the_same_rows_give_the_same_bytes() -> None:
    assert len({write_part([row(render) for render in range(300)]) for _ in range(5)}) == 1


def test_a_part_in_the_store_leaves_out_the_tokens_of_files_that_hold_nothing_else() -> None:
    alone = row(0, sha256=hashlib.sha256(TOKENS).hexdigest())
    rows = [alone, row(1), failed(2)]
    now, before = part_forms(rows)
    assert read_part(now) == [alone._replace(tokens=None), *rows[1:]]
    assert read_part(before) == rows


def test_a_part_without_rows_can_be_read() -> None:
    assert read_part(write_part([])) == []


def test_other_tools_read_the_columns(tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("part") / "part.parquet"
    path.write_bytes(write_part([row(0), failed(1)]))
    table = pq.read_table(path)
    assert table.column_names == list(ManifestRow._fields)
    assert str(table.schema.field("seed").type) == "uint64"
    assert table["seed"].to_pylist() == [MAX_SEED, MAX_SEED]
    assert table["tokens"].to_pylist() == [TOKENS, None]
    assert table["error"].null_count == 1


def test_a_line_of_the_public_manifest() -> None:
    line = row(3, 1).public()
    assert json.loads(json.dumps(line)) == line
    assert line["spec"]["prompt"] == "ein “Fahrrad” 🚲\nmit Zeile"
    assert line["seed"] == MAX_SEED
    assert (line["render"], line["image"], line["file"]) == (3, 1, "data/3.png")
    assert (line["width"], line["height"], line["size"]) == (48, 32, 2**40)
    assert line["tokens_sha256"] == hashlib.sha256(TOKENS).hexdigest()
    assert line["notes"] == ["one", "two"]
    assert line["error"] is None
    assert "tokens" not in line


def test_a_failed_row_says_why() -> None:
    line = failed(1).public()
    assert (line["file"], line["sha256"], line["tokens_sha256"]) == (None, None, None)
    assert line["error"]["code"] == "render"
    failure = failed(1).failure
    assert isinstance(failure, RenderError)
    assert failure.hint == "another seed"


@pytest.mark.parametrize("damage", ["empty", "cut", "other"])
def test_a_damaged_part_is_an_error_of_the_store(damage: str) -> None:
    data = write_part([row(0)])
    with pytest.raises(StoreError, match="damaged"):
        read_part({"empty": b"", "cut": data[:-9], "other": b"PAR1" + bytes(50) + b"PAR1"}[damage])
