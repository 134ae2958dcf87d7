"""Files of renders as people have them."""

import bz2
import gzip
import json
import lzma
import os
import tracemalloc
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from farm.cli import parquet_file
from farm.cli.app import run
from farm.cli.columns import Columns
from farm.cli.input_files import Reading, read_files
from farm.cli.selection import Selection
from farm.errors import InvalidInput
from farm_client.ndjson import Line, completed

ROWS = [{"prompt": "a red circle"}, {"prompt": "a blue square", "seed": 7}]
JSONL = "".join(json.dumps(row) + "\n" for row in ROWS).encode()


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def lines(*names: str, columns: Sequence[str] = (), **reading: Any) -> list[Line]:
    asked = Reading(columns=Columns.parse(columns), **reading)
    return list(completed(read_files(names, asked), {}))


def rows(*names: str, columns: Sequence[str] = (), **reading: Any) -> list[dict[str, Any]]:
    """What is sent of each line; files that are to be uploaded stay paths."""
    found = lines(*names, columns=columns, **reading)
    assert [line.error for line in found if line.error] == []
    return [dict(line.data) if line.data else json.loads(line.text) for line in found]


def parquet(name: str, **columns: Any) -> None:
    pq.write_table(pa.table(columns), name)


def _zstd(data: bytes) -> bytes:
    half = len(data) // 2  # two frames, as `cat a.zst b.zst` makes them
    return b"".join(pa.compress(d, codec="zstd", asbytes=True) for d in (data[:half], data[half:]))


PACKERS = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress, ".zst": _zstd}


@pytest.mark.parametrize("suffix", PACKERS)
def test_a_compressed_file_is_read_as_what_is_in_it(suffix: str) -> None:
    Path(f"a.jsonl{suffix}").write_bytes(PACKERS[suffix](JSONL))
    Path(f"a.csv{suffix}").write_bytes(PACKERS[suffix](b"prompt,seed\na red circle,\nx,7\n"))
    assert rows(f"a.jsonl{suffix}") == ROWS
    assert rows(f"a.csv{suffix}") == [{"prompt": "a red circle"}, {"prompt": "x", "seed": 7}]


def test_a_file_is_unpacked_whatever_its_name_says() -> None:
    Path("packed.jsonl").write_bytes(gzip.compress(JSONL))
    Path("plain.jsonl.gz").write_bytes(JSONL)
    assert rows("packed.jsonl") == rows("plain.jsonl.gz") == ROWS


@pytest.mark.parametrize("suffix", PACKERS)
def test_a_damaged_compressed_file_is_one_clear_line(suffix: str) -> None:
    text = b"".join(b'{"prompt": "%d"}\n' % (n * 7919) for n in range(5000))
    packed = PACKERS[suffix](text)
    Path(f"a.jsonl{suffix}").write_bytes(packed[: len(packed) // 2])
    with pytest.raises(InvalidInput, match="cannot be unpacked"):
        lines(f"a.jsonl{suffix}")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("cr.txt", b"a red circle\ra blue square\r"),
        ("cr.csv", b"prompt\ra red circle\ra blue square\r"),
        ("cr.jsonl", b'{"prompt": "a red circle"}\r{"prompt": "a blue square"}\r'),
        ("mark.csv", b'\xef\xbb\xbf"prompt",note\r\na red circle,\r\na blue square,\r\n'),
        ("semi.csv", b"prompt;width\na red circle;\na blue square;\n"),
        ("sep.csv", b"sep=|\nprompt|width\na red circle|\na blue square|\n"),
        ("tab.csv", b"prompt\twidth\na red circle\t\na blue square\t\n"),
        ("index.csv", b",prompt\n0,a red circle\n1,a blue square\n"),
    ],
)
def test_text_is_read_however_it_was_written(name: str, content: bytes) -> None:
    Path(name).write_bytes(content)
    assert rows(name) == [{"prompt": "a red circle"}, {"prompt": "a blue square"}]


def test_a_table_with_semicolons_may_have_decimal_commas() -> None:
    Path("a.csv").write_text('prompt;guidance_scale;temperature\n"a; b";7,5;2,0\n')
    assert rows("a.csv") == [{"prompt": "a; b", "guidance_scale": 7.5, "temperature": [2, 0]}]


@pytest.mark.parametrize(
    ("content", "words", "taken"),
    [
        ('prompt,seed\n"a,1\nb,2\n"c",3\nd,4\n', "line 2, column 1: a quoted cell", ["d"]),
        ('prompt\nz\n"a\nb\nc\n', "line 3, column 1: a quote is never closed", ["z"]),
        ('prompt,seed\n"a\nb",1\n"c" d,2\ne,3\n', "line 4, column 1", ["a\nb", "e"]),
    ],
)
def test_a_quote_that_is_not_closed_is_an_error_of_its_row(
    content: str, words: str, taken: list[str]
) -> None:
    Path("a.csv").write_text(content)
    found = lines("a.csv")
    assert words in str(next(line.error for line in found if line.error))
    assert [json.loads(line.text)["prompt"] for line in found if not line.error] == taken


def test_an_array_of_json_may_be_of_prompts() -> None:
    Path("a.json").write_text('["a star",\n {"prompt": "a ring", "seed": 7}, 7]')
    star, ring, seven = lines("a.json")
    assert (json.loads(star.text), star.place("prompt")) == ({"prompt": "a star"}, 2)
    assert json.loads(ring.text) == {"prompt": "a ring", "seed": 7}
    assert "int is not a render" in str(seven.error)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.txt", "ein Quadrätchen\n"),
        ("a.csv", "prompt\nein Quadrätchen\n"),
        ("a.tsv", "prompt\nein Quadrätchen\n"),
        ("a.jsonl", '{"prompt": "ein Quadrätchen"}\n'),
        ("a.json", '["ein Quadrätchen"]'),
        ("b.json", '{\n"prompt": "ein Quadrätchen"\n}'),
    ],
)
def test_text_that_is_not_utf_8_is_refused_with_the_way_out(name: str, text: str) -> None:
    Path(name).write_text(text, encoding="cp1252")
    try:
        [error] = [line.error for line in lines(name)]
    except InvalidInput as refused:
        error = refused
    assert "is not UTF-8" in str(error)
    assert "iconv -f WINDOWS-1252" in str(error)


def test_a_quote_that_swallows_a_large_file_ends_it() -> None:
    Path("a.csv").write_text('prompt\nx\n"a\n' + "a blue square\n" * 200_000)
    with pytest.raises(InvalidInput, match="line 3"):
        lines("a.csv")


def test_columns_of_a_table_are_kept_as_text() -> None:
    Path("a.csv").write_text("id,prompt,Category,empty\n007,a,Abstract,\n")
    told: list[str] = []
    assert rows("a.csv", note=told.append) == [
        {"prompt": "a", "metadata": {"id": "007", "Category": "Abstract"}}
    ]
    assert told == ["a.csv: kept as metadata: id, Category, empty"]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", b"prompt,caption,cfg\nold,a star,7\n"),
        ("a.tsv", b"prompt\tcaption\tcfg\nold\ta star\t7\n"),
        ("a.jsonl", b'{"prompt": "old", "caption": "a star", "cfg": 7}\n'),
        ("a.json", b'[{"prompt": "old", "caption": "a star", "cfg": 7}]\n'),
        ("a.parquet", b""),
    ],
)
def test_columns_are_mapped_in_every_format(name: str, content: bytes) -> None:
    Path(name).write_bytes(content)
    if name == "a.parquet":
        parquet(name, prompt=["old"], caption=["a star"], cfg=[7])
    found = rows(name, columns=["prompt=caption", "guidance_scale=cfg"])
    assert found == [{"prompt": "a star", "guidance_scale": 7, "metadata": {"prompt": "old"}}]


@pytest.mark.parametrize("column", ["steps", "n", "mask", "cfg_scale", "promt"])
def test_a_column_that_means_a_parameter_is_refused_with_the_way_out(column: str) -> None:
    Path("a.csv").write_text(f"prompt,{column}\nx,7\n")
    parquet("a.parquet", **{"prompt": ["x"], column: [7]})
    for name in ("a.csv", "a.parquet"):
        with pytest.raises(InvalidInput) as refused:
            lines(name)
        assert (refused.value.field, refused.value.line, refused.value.column) == (column, 1, 2)
        assert f"={column}" in (refused.value.hint or "")
    assert rows("a.csv", columns=[f"metadata={column}"]) == [
        {"prompt": "x", "metadata": {column: "7"}}
    ]


@pytest.mark.parametrize(
    ("given", "words"),
    [(["nothing=x"], "not a parameter"), (["prompt=a", "b"], "two columns for prompt"),
     (["prompt=none"], "no column 'none'"), (["steps=x"], "num_inference_steps")],
)  # fmt: skip
def test_a_wrong_mapping_is_refused(given: list[str], words: str) -> None:
    Path("a.csv").write_text("prompt,x\nx,1\n")
    with pytest.raises(InvalidInput, match=words):
        lines("a.csv", columns=given)


def test_files_and_folders_go_together_in_order() -> None:
    Path("set/deep/.hidden").mkdir(parents=True)
    Path("set/b.txt").write_text("b\n")
    Path("set/a.csv").write_text("prompt\na\n")
    Path("set/deep/c.jsonl.gz").write_bytes(gzip.compress(b'{"prompt": "c"}'))
    Path("set/deep/.hidden/d.txt").write_text("not this")
    Path("set/photo.png").write_bytes(b"nor this")
    Path("first.txt").write_bytes(b"first\n\xff")
    told: list[str] = []
    found = lines("first.txt", "set", note=told.append)
    assert [(line.file, line.number) for line in found] == [
        ("first.txt", 1), ("first.txt", 2), ("set/a.csv", 2), ("set/b.txt", 1),
        ("set/deep/c.jsonl.gz", 1),
    ]  # fmt: skip
    assert found[1].error is not None
    assert told == ["set: 1 other files are left out"]


@pytest.mark.parametrize("name", ["prompts.md", "LICENSE", "my notes.docx"])
def test_another_file_is_refused_with_the_way_to_draw_its_name(name: str) -> None:
    Path(name).write_text("a red circle")
    with pytest.raises(InvalidInput) as refused:
        lines(name)
    assert f"--prompt {name!r}" in (refused.value.hint or "")
    assert rows(name, kind="txt") == [{"prompt": "a red circle"}]


def test_every_file_is_looked_at_before_the_first_is_sent() -> None:
    Path("a.txt").write_text("a\n")
    with pytest.raises(InvalidInput, match="no file none"):
        read_files(["a.txt", "none.txt"], Reading())


def test_relative_paths_are_meant_from_the_file() -> None:
    Path("set").mkdir()
    Path("set/a.json").write_text('{\n "prompt": "x",\n "image": "photo.png"\n}')
    Path("set/a.jsonl").write_text('{"prompt": "x", "image": "photo.png"}')
    Path("set/a.csv").write_text("prompt,image\nx,photo.png\n")
    parquet("set/path.parquet", prompt=["x"], image=["photo.png"])
    parquet("set/hf.parquet", prompt=["x"], image=[{"bytes": None, "path": "photo.png"}])
    for name in ("a.json", "a.jsonl", "a.csv", "path.parquet", "hf.parquet"):
        (line,) = lines(f"set/{name}")
        assert line.data is not None
        assert (line.data["image"], line.base) == ("photo.png", Path("set").resolve()), name


def test_parquet_gives_what_the_columns_hold() -> None:
    parquet(
        "a.parquet",
        prompt=pa.array([b"a star", "ein Fahrr\u00e4dchen".encode()], pa.binary()),
        guidance_scale=pa.array([7.3, None], pa.float32()),
        strength=pa.array([Decimal("0.50"), None], pa.decimal128(5, 2)),
        seed=pa.array([Decimal(7), None], pa.decimal128(20, 0)),
        image=[{"bytes": b"png", "path": "old.png"}, None],
        day=pa.array([0, None], pa.date32()),
        score=[0.5, float("nan")],
        boxes=[[1, 2], None],
        more=[{"a": 1}, None],
        thumbnail=[b"\xff", b"\xff"],
    )
    told: list[str] = []
    first, second = rows("a.parquet", note=told.append)
    assert first == {
        "prompt": "a star", "guidance_scale": 7.3, "strength": 0.5, "seed": 7, "image": b"png",
        "metadata": {"day": "1970-01-01", "score": 0.5, "boxes": [1, 2], "more": {"a": 1}},
    }  # fmt: skip
    assert second == {"prompt": "ein Fahrr\u00e4dchen"}
    assert told == [
        "a.parquet: columns of bytes are not kept: thumbnail",
        "a.parquet: kept as metadata: day, score, boxes, more",
    ]


def test_parquet_keeps_no_bytes_however_deep_and_every_digit_of_an_id() -> None:
    parquet(
        "a.parquet",
        prompt=["a star"],
        pictures=[[{"bytes": b"\x89PNG", "path": None}]],
        crc=pa.array([b"0123"], pa.binary(4)),
        blobs=pa.array([[("a", b"x")]], pa.map_(pa.string(), pa.binary())),
        id=pa.array([Decimal(12345678901234567891)], pa.decimal128(20, 0)),
        price=pa.array([Decimal("5.00")], pa.decimal128(5, 2)),
        counts=pa.array([[("a", 1)]], pa.map_(pa.string(), pa.int64())),
    )
    told: list[str] = []
    [row] = rows("a.parquet", note=told.append)
    assert row["metadata"] == {
        "id": 12345678901234567891, "price": 5.0, "counts": [["a", 1]],
    }  # fmt: skip
    assert told[0] == "a.parquet: columns of bytes are not kept: pictures, crc, blobs"


def test_a_cell_of_parquet_that_is_not_a_number_is_named() -> None:
    parquet(
        "a.parquet",
        prompt=pa.array([b"x", b"\xff", b"x"], pa.binary()),
        guidance_scale=[float("nan"), 1.0, float("inf")],
    )
    errors = [line.error for line in lines("a.parquet")]
    assert [(e.line, e.column, e.field) for e in errors if e is not None] == [
        (1, 2, "guidance_scale"), (2, 1, "prompt"), (3, 2, "guidance_scale"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "value", [7.3, 0.1, 1e-30, 3.4028235e38, 1.17549435e-38, 16777217.0, -0.3, 0.0]
)
def test_numbers_of_32_bits_stay_the_same_and_are_short(value: float) -> None:
    import numpy as np

    parquet("a.parquet", prompt=["x"], score=pa.array([value], pa.float32()))
    (row,) = rows("a.parquet")
    assert np.float32(row["metadata"]["score"]) == np.float32(value)
    assert len(repr(row["metadata"]["score"])) <= len(repr(value))


def test_a_parquet_file_that_breaks_off_says_so() -> None:
    parquet("a.parquet", prompt=[f"p{n * 7919}" for n in range(5000)])
    whole = Path("a.parquet").read_bytes()
    Path("cut.parquet").write_bytes(whole[:200])
    Path("damaged.parquet").write_bytes(whole[:100] + bytes(3000) + whole[3100:])
    Path("a.parquet.gz").write_bytes(gzip.compress(whole))
    for name in ("cut.parquet", "damaged.parquet", "a.parquet.gz"):
        with pytest.raises(InvalidInput, match=name):
            lines(name)


def test_a_sample_is_the_same_every_time_and_a_part_of_a_larger_one() -> None:
    Path("a.txt").write_text("".join(f"{n}\n" for n in range(1000)))

    def taken(*selection: int | None) -> list[int]:
        read = Selection(*selection).of(read_files(["a.txt"], Reading()))  # type: ignore[arg-type]
        return [int((line.data or {})["prompt"]) for line in read]

    ten, hundred = taken(None, 10, 1), taken(None, 100, 1)
    assert ten == taken(None, 10, 1)
    assert ten == sorted(ten)
    assert set(ten) < set(hundred)
    assert ten != taken(None, 10, 2)
    assert 300 < sum(hundred) / 100 < 700
    assert taken(5, None) == [0, 1, 2, 3, 4]
    assert set(taken(20, 10)) < set(range(20))
    assert taken(3, 10) == [0, 1, 2]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("empty.csv", b""), ("blank.csv", b"\n\n"), ("noprompt.csv", b"a,b\n1,2\n"),
        ("array.json", b"[1, 2"), ("wide.tsv", "prompt\nx\n".encode("utf-16")),
        ("x.parquet", b"PAR1"), ("twice.csv", b"prompt,x,x\na,1,2\n"), ("x.jsonl.gz", b""),
    ],
)  # fmt: skip
def test_a_file_that_cannot_be_used_is_one_clear_error(name: str, content: bytes) -> None:
    Path(name).write_bytes(content)
    with pytest.raises(InvalidInput):
        lines(name)


@pytest.mark.parametrize("suffix", [".jsonl", ".yaml"])
def test_a_name_longer_than_files_have_is_told(
    suffix: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["submit", "x" * 300 + suffix]) == 2
    assert capsys.readouterr().err.endswith(f"{suffix} cannot be read: File name too long\n")


def test_a_parquet_file_of_pictures_is_not_read_into_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whoever does not say otherwise writes a million rows as one group."""
    monkeypatch.setattr(parquet_file, "BATCH_ROWS", 1)
    count, size = 64, 1 << 18
    pictures = [os.urandom(size) for _ in range(count)]
    table = pa.table({"prompt": ["x"] * count, "image": pictures})
    pq.write_table(table, "a.parquet", write_batch_size=1)  # pages of one picture
    del pictures, table
    tracemalloc.start()
    try:
        asked = Reading(columns=Columns.parse([]))
        assert sum(1 for _ in completed(read_files(["a.parquet"], asked), {})) == count
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < count * size / 2
