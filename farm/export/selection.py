"""Which of the fetched pictures a data set gets, with the columns that scores have added.

The selection is a manifest like the fetched one. It is made once, so that an export that was
interrupted goes on with the same pictures, whatever was scored meanwhile.
"""

import json
import os
import re
from collections.abc import Iterable, Iterator
from itertools import compress, islice
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from farm.errors import InvalidInput
from farm.export.duplicates import MIN_QUALITY, Dedup, HashedPicture, duplicates
from farm.export.fetched import MANIFEST, SELECTED, read_manifest, row_of
from farm.export.scored import Score, Scored, scored
from farm.export.where import Where
from farm.formats.columns import FIXED, column_types, fixed_values, own_values

_PDQ = re.compile(r"[0-9a-f]{64}")
BLOCK = 4096  # rows that are looked at together


class Selection(NamedTuple):
    """How many pictures there were and are."""

    pictures: int
    unwanted: int  # by the condition
    duplicates: int


def select(
    folder: Path, scores: Iterable[Score], where: Where | None, dedup: Dedup | None
) -> Selection | None:
    """Write ``SELECTED`` beside the fetched manifest; None if it is there already, or would be the
    same.

    Raises:
        InvalidInput: the condition or the duplicates need a column that no picture has, or no
            picture is wanted.
    """
    if (folder / SELECTED).exists():
        return None
    with scored(folder) as known:
        known.add(scores)
        if not known.count and where is None and dedup is None:
            return None
        return _write(folder, _Rows(folder, known), where, dedup)


def _write(folder: Path, rows: "_Rows", where: Where | None, dedup: Dedup | None) -> Selection:
    wanted = _wanted(rows, where)
    unwanted = wanted.count(0)
    if unwanted == len(wanted):  # before the file is there, so that the same call says it again
        raise InvalidInput("no picture is wanted", field="--where")
    gone = 0
    if dedup is not None:
        for place in duplicates(_hashed(rows, wanted), dedup.distance):
            wanted[place] = 0
            gone += 1
    draft = folder / f".{SELECTED}.part"
    with draft.open("w", encoding="utf-8") as out:
        for line in compress(rows.lines(), wanted):
            out.write(json.dumps(line, ensure_ascii=False) + "\n")
        out.flush()
        os.fsync(out.fileno())
    draft.replace(folder / SELECTED)
    return Selection(len(wanted), unwanted, gone)


class _Rows:
    """The pictures that did not fail, with scores among their columns; each pass reads them."""

    def __init__(self, folder: Path, scores: Scored) -> None:
        self._folder = folder
        self._scores = scores
        self.types = column_types(line["metadata"] for line in self.lines())

    def lines(self) -> Iterator[dict[str, Any]]:
        """A user's own column is not replaced by a score of the same name."""
        for line in read_manifest(self._folder / MANIFEST):
            known = self._scores.of(line["render"], line["image"], line["sha256"])
            line["metadata"] = {**known, **line["metadata"]}
            yield line


def _wanted(rows: _Rows, where: Where | None) -> bytearray:
    """A byte for each row: 1 where the condition wants it."""
    if where is None:
        return bytearray(1 for _ in rows.lines())
    types = {**rows.types, **FIXED}
    where.check_columns(list(types))
    schema = pa.schema({name: types[name] for name in where.columns} | {"": pa.int64()})
    wanted, lines = bytearray(), rows.lines()
    while block := [row_of(line) for line in islice(lines, BLOCK)]:
        columns = [
            {**own_values(row.metadata, rows.types), **told, "": place}
            for place, (row, told) in enumerate(
                zip(block, fixed_values(block), strict=True), len(wanted)
            )
        ]
        wanted += bytes(len(block))
        for place in where.filter(pa.Table.from_pylist(columns, schema))[""].to_pylist():
            wanted[place] = 1
    return wanted


def _hashed(rows: _Rows, wanted: bytearray) -> Iterator[HashedPicture]:
    if "pdq" not in rows.types:
        raise InvalidInput(
            "no picture has a column 'pdq'", field="--dedup", hint="farm score JOB --with pdq"
        )
    for place, line in enumerate(rows.lines()):
        told = line["metadata"]
        if not wanted[place] or "pdq" not in told:
            continue
        pdq, quality = told["pdq"], told.get("pdq_quality", MIN_QUALITY)
        if not (isinstance(pdq, str) and _PDQ.fullmatch(pdq) and isinstance(quality, int | float)):
            raise InvalidInput(
                f"column 'pdq' or 'pdq_quality' of render {line['render']} is not what farm score "
                "adds",
                field="--dedup",
                hint="the job has columns of its own by these names, which come before scores",
            )
        if quality >= MIN_QUALITY:
            yield HashedPicture(1 - (line["confidence"] or 0), place, bytes.fromhex(pdq))
