"""How pictures lie in a shard: found again at their offsets, and the same bytes every time."""

import hashlib
import io
import tarfile
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fake_engine import INFO
from hypothesis import given, settings
from hypothesis import strategies as st

from farm.formats.columns import column_types, typed
from farm.formats.encoding import encode
from farm.formats.manifest import ManifestRow
from farm.formats.picture_record import PictureRecord
from farm.job import Format
from farm.sinks.layout import Layout
from farm.sinks.parquet import Parquet, Tokens, _offsets
from farm.sinks.webdataset import Webdataset
from farm.spec import RenderRequest

LAYOUTS: list[Layout] = [Webdataset(), Webdataset(captions=True), Parquet(), Tokens()]
METADATA = '{"id":"x","tags":["a"]}'


def made(layout: Layout, count: int = 5, job: str = "j") -> tuple[list[ManifestRow], list[bytes]]:
    """Rows of pictures that are not square, with notes."""
    kind = Format.TOKENS if isinstance(layout, Tokens) else Format.PNG
    rows, contents = [], []
    for render in range(count):
        random = np.random.default_rng(render)
        request = RenderRequest(prompt=f"p {render}", height=32, width=64)
        spec = request.resolve(INFO, seed=render)
        record = PictureRecord(
            job, 0, render, 0, spec, "n", kind, ("a note", "another"), METADATA, 0.5
        )
        tokens = random.integers(0, 1024, (4, 8), dtype=np.uint16)
        pixels = random.integers(0, 256, (32, 64, 3), dtype=np.uint8)
        if layout.tokens_alone:
            rows.append(record.tokens_row(tokens))
            contents.append(rows[-1].tokens or b"")
        else:
            contents.append(encode(pixels, record.facts(tokens), kind))
            name = layout.file_name(render, 0, kind)
            rows.append(record.stored_row(name, contents[-1]))
    return rows, contents


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda one: type(one).__name__)
def test_each_picture_lies_at_its_offset_and_is_unpacked_with_its_facts(layout: Layout) -> None:
    rows, contents = made(layout)
    packed = layout.pack(rows, contents)
    for offset, content in zip(packed.offsets, contents, strict=True):
        assert packed.data[offset : offset + len(content)] == content
    found = list(layout.unpack(packed.data))
    assert [one.picture for one in found] == [row.picture for row in rows]
    assert [one.content for one in found] == contents
    assert [one.offset for one in found] == packed.offsets
    for row, one in zip(rows, found, strict=True):
        assert one.facts.spec.canonical() == row.spec
        assert (one.facts.notes, one.facts.confidence) == (row.notes, 0.5)
        assert one.facts.tokens.shape == (4, 8)
        assert one.facts.tokens.astype("<u2").tobytes() == row.tokens


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda one: type(one).__name__)
def test_the_bytes_tell_of_no_job_and_no_time(
    layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = layout.pack(*made(layout)).data
    monkeypatch.setattr("time.time", lambda: 2e9)
    monkeypatch.setattr("os.getuid", lambda: 4711)
    assert layout.pack(*made(layout, job="another")).data == first


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda one: type(one).__name__)
def test_a_damaged_shard_is_refused(layout: Layout) -> None:
    data = layout.pack(*made(layout)).data
    changed = data.index(made(layout)[1][2]) + 60
    for damaged in (b"", b"x" * 2000, data[:changed] + b"x" + data[changed + 1 :]):
        with pytest.raises(ValueError, match=r"damaged|subsection not found"):
            list(layout.unpack(damaged))


@pytest.mark.parametrize(
    ("layout", "column"),
    [(Parquet(), "image"), (Tokens(), "tokens"), (Tokens(), "notes")],
)
def test_values_that_are_gone_are_damage(layout: Layout, column: str) -> None:
    """Pages have no checksum, so a bit may flip a value to null."""
    table = pq.read_table(io.BytesIO(layout.pack(*made(layout)).data))
    at = table.column_names.index(column)
    kind = table.schema.field(at).type
    out = io.BytesIO()
    pq.write_table(table.set_column(at, column, pa.nulls(len(table), kind)), out)
    with pytest.raises(ValueError, match="damaged"):
        list(layout.unpack(out.getvalue()))


def test_a_sidecar_that_is_not_an_object_is_damage() -> None:
    layout = Webdataset()
    data = layout.pack(*made(layout, 1)).data
    start, end = data.index(b'{"checkpoint"'), data.rindex(b"}") + 1
    with pytest.raises(ValueError, match="damaged"):
        list(layout.unpack(data[:start] + b"[]".ljust(end - start) + data[end:]))


def test_equal_pictures_are_told_apart() -> None:
    layout = Tokens()
    rows, contents = made(layout, 3)
    packed = layout.pack(rows, [contents[0]] * 3)
    assert len(set(packed.offsets)) == 3


@settings(max_examples=50)
@given(
    st.binary(max_size=9), st.lists(st.binary(max_size=3), min_size=1, max_size=5), st.booleans()
)
def test_contents_are_found_in_their_order_whether_they_follow_each_other_or_not(
    before: bytes, contents: list[bytes], apart: bool
) -> None:
    stored = [len(one).to_bytes(4, "little") + one for one in contents]
    data = before + (b"gap" if apart else b"").join(stored)
    found = _offsets(data, contents)
    assert found == sorted(found)
    assert [data[at:][: len(one)] for at, one in zip(found, contents, strict=True)] == contents


def test_a_tar_is_one_of_nobody_in_the_order_of_the_pictures() -> None:
    layout = Webdataset()
    with tarfile.open(fileobj=io.BytesIO(layout.pack(*made(layout, 2)).data)) as archive:
        members = archive.getmembers()
    stems = ["00000000-00", "00000001-00"]
    assert [one.name for one in members] == [f"{s}.{e}" for s in stems for e in ("png", "json")]
    assert {(one.mtime, one.uid, one.gid, one.uname, one.gname, one.mode) for one in members} == {
        (0, 0, 0, "", "", 0o644)
    }


def test_a_parquet_shard_has_row_groups_a_page_index_and_an_image_as_it_is() -> None:
    layout = Parquet()
    file = pq.ParquetFile(io.BytesIO(layout.pack(*made(layout, 250)).data))
    assert [file.metadata.row_group(n).num_rows for n in range(3)] == [100, 100, 50]
    pictures = file.metadata.row_group(0).column(0)
    assert (pictures.path_in_schema, pictures.compression) == ("image.bytes", "UNCOMPRESSED")
    assert file.metadata.row_group(0).column(2).has_offset_index
    assert file.schema_arrow.field("image").type.names == ["bytes", "path"]


def test_a_shard_of_tokens_has_one_row_group() -> None:
    file = pq.ParquetFile(io.BytesIO(Tokens().pack(*made(Tokens(), 250)).data))
    assert file.metadata.num_row_groups == 1


def test_tokens_take_two_bytes_each() -> None:
    layout = Tokens()
    rows, contents = made(layout)
    assert {len(one) for one in contents} == {2 * 4 * 8}
    for row, content in zip(rows, contents, strict=True):
        assert hashlib.sha256(content).hexdigest() == row.tokens_sha256


@pytest.mark.parametrize(
    ("values", "kind", "kept"),
    [
        ([1, None, 2], pa.int64(), [1, None, 2]),
        ([1, 2.5], pa.float64(), [1.0, 2.5]),
        ([True, None], pa.bool_(), [True, None]),
        (["a", 1], pa.string(), ["a", "1"]),
        ([None, None], pa.string(), [None, None]),
        ([["a"], []], pa.list_(pa.string()), [["a"], []]),
        ([[1], [1.5]], pa.list_(pa.float64()), [[1.0], [1.5]]),
        ([[1], ["a"]], pa.string(), ["[1]", '["a"]']),
        ([[[1]]], pa.string(), ["[[1]]"]),
        ([2**70], pa.string(), [str(2**70)]),
        ([2**53 + 1, 0.5], pa.float64(), [2.0**53, 0.5]),
        ([[2**53 + 1, None], [0.5]], pa.list_(pa.float64()), [[2.0**53, None], [0.5]]),
        ([{"a": "ä"}], pa.string(), ['{"a": "ä"}']),
    ],
)
def test_a_column_of_the_user_has_the_type_that_its_values_share(
    values: Sequence[Any], kind: pa.DataType, kept: Sequence[Any]
) -> None:
    types = column_types({"x": value} for value in values)
    assert types == {"x": kind}
    assert pa.array([typed(value, kind) for value in values], kind).to_pylist() == list(kept)
