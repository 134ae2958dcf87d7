"""From a fetched job to a data set: groups of pictures, written one after another.

An export that was interrupted goes on with the first group that is not there. What it knows of
finished groups lies in ``.export``, which goes when the data set is whole.
"""

import contextlib
import fcntl
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from farm.errors import Conflict, FarmError
from farm.export.card import CARD, CROISSANT, MANIFEST, PLACES, CardFacts, write_card
from farm.export.fetched import MANIFEST as FETCHED_MANIFEST
from farm.export.fetched import (
    SELECTED,
    Decode,
    FetchedPicture,
    failed_rows,
    fetched_pictures,
    wanted_lines,
)
from farm.export.splits import Splits
from farm.export.statistics import STATISTICS
from farm.export.targets import ImageFolder, ShardTarget, Target, write_whole
from farm.formats.columns import FIXED, column_types, fixed_values, own_values
from farm.formats.credentials import Sign
from farm.formats.manifest import ManifestRow, read_part, write_part
from farm.job import SHARD_PICTURES, SHARD_PIXELS, Format
from farm.sinks.parquet import Parquet, Tokens, hugging_face
from farm.sinks.webdataset import Webdataset
from farm.spec import canonical_json

As = Literal["webdataset", "parquet", "imagefolder", "tokens"]

STATE = ".export"  # in the data set's folder while it is not whole
FETCHED = "fetched"  # in there: what was fetched of the job
ROWS = "rows"  # in there: of each group that was written
PLAN = "plan.json"
WHOLE = "_SUCCESS"  # written last
# Columns of the farm's own; a user's column of that name is only in ``metadata``.
_TAKEN = frozenset({*FIXED, *PLACES, "image", "tokens"})
_SPLIT_OF_SHARD = re.compile(r"(?:data/)?([a-z0-9_]+)[-/][0-9]+")  # as targets name them
# To the loader ``imagefolder`` these are pictures.
_FILE_COLUMN = re.compile(r"(.*_)?file_names?")


class Plan(NamedTuple):
    """What decides the bytes of an export, besides the pictures."""

    job: str
    target: As
    splits: Splits = Splits.parse(None)
    shard_size: int = SHARD_PICTURES
    kind: Format = Format.PNG  # of pictures that are decoded from tokens
    license: str = "unknown"
    title: str = ""
    generation: int = 0  # of the job: a retry makes other pictures
    signed: bool = False  # pictures get content credentials
    where: str | None = None  # a condition on the columns
    dedup: str | None = None

    def to_json(self) -> str:
        told = {**self._asdict(), "splits": str(self.splits)}
        for name in ("signed", "where", "dedup"):  # which earlier versions did not have
            if not told[name]:
                del told[name]
        return canonical_json(told)


class Exported(NamedTuple):
    """What the data set holds."""

    splits: dict[str, int]  # pictures by split
    failed: int

    @property
    def pictures(self) -> int:
        return sum(self.splits.values())


class _Group(NamedTuple):
    """Pictures that become one shard or one folder."""

    split: str
    number: int
    pictures: list[FetchedPicture]


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """While one export writes there: a second one would move the drafts of the first.

    Raises:
        Conflict: another process does.
    """
    if folder.exists() and not folder.is_dir():
        raise _taken(f"{folder} is a file", overwrite=False)
    folder.mkdir(parents=True, exist_ok=True)
    held = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise _taken(f"another export is writing to {folder}", overwrite=False) from None
        except OSError:
            pass  # a file system without locks of folders
        yield
    finally:
        os.close(held)


def begin(plan: Plan, folder: Path, *, overwrite: bool = False) -> bool:
    """Make the folder ready; False if this very data set is there already.

    While pictures were only fetched, a plan is not kept to: what is wanted of them may be asked
    for in another way.

    Raises:
        Conflict: the folder holds something else.
    """
    told, whole = folder / STATE / PLAN, folder / WHOLE
    known = next((one for one in (whole, told) if _groups_of(one) is not None), None)
    if known is not None and not overwrite:
        if known.read_bytes() == plan.to_json().encode():
            if known is whole:
                shutil.rmtree(folder / STATE, ignore_errors=True)  # of a call that was killed then
            return known is told
        if known is whole or not _only_fetched(folder, plan.job):
            raise _taken(f"{folder} holds another export")
        source = folder / STATE / FETCHED
        (source / SELECTED).unlink(missing_ok=True)
        if json.loads(known.read_bytes()).get("generation") != plan.generation:
            (source / FETCHED_MANIFEST).unlink(missing_ok=True)  # a retry has made more pictures
    elif known is not None:
        # From now on it is neither whole nor what the same call would go on with.
        going = {**json.loads(known.read_bytes()), "job": ""}
        write_whole(told, canonical_json(going).encode())
        _remove(folder, _groups_of(known) or ())
    elif folder.exists() and any(one.name != STATE for one in folder.iterdir()):
        raise _taken(f"{folder} has files that are not an export's", overwrite=False)
    else:
        shutil.rmtree(folder / STATE, ignore_errors=True)  # what is left of another job's
    write_whole(told, plan.to_json().encode())
    return True


def is_settled(folder: Path) -> bool:
    """Whether pictures were written, so that the others are of the same choice and have the same
    columns, whatever was scored meanwhile."""
    return (folder / STATE / ROWS).exists()


def _groups_of(path: Path) -> tuple[str, ...] | None:
    """The folders with an export's groups, by its plan; None where there is none."""
    try:
        return groups_of(path.read_bytes())
    except OSError:
        return None


def groups_of(plan: bytes) -> tuple[str, ...] | None:
    """The same of a plan's text; None for that of another program, which may have its name."""
    try:
        told = json.loads(plan)
        splits = Splits.parse(str(told["splits"]))  # a stranger may have written the names
        return splits.names if told["target"] == "imagefolder" else ("data",)
    except (ValueError, LookupError, TypeError, FarmError):
        return None


def _only_fetched(folder: Path, job: str) -> bool:
    """Whether an unfinished export of the job has written nothing yet."""
    plan = (folder / STATE / PLAN).read_bytes()
    written = any((folder / name).exists() for name in groups_of(plan) or ())
    return json.loads(plan).get("job") == job and not written


def _remove(folder: Path, groups: Iterable[str]) -> None:
    """Remove what an export writes, and nothing else that lies there; what says so goes last."""
    for name in (WHOLE, CARD, CROISSANT, MANIFEST, STATISTICS):
        (folder / name).unlink(missing_ok=True)
    for name in (*groups, STATE):
        shutil.rmtree(folder / name, ignore_errors=True)


def _taken(message: str, *, overwrite: bool = True) -> Conflict:
    hint = "name another folder, or give --overwrite" if overwrite else "name another folder"
    return Conflict(message, field="--output", hint=hint)


def export(
    plan: Plan,
    folder: Path,
    decode: Decode | None,
    sign: Sign | None = None,
    progress: Callable[[int], None] | None = None,
) -> Exported:
    """Write the data set from what lies in ``STATE/FETCHED``.

    Args:
        plan: what is wanted.
        folder: made ready by ``begin``.
        decode, sign: as ``farm.export.fetched.as_pictures`` takes them.
        progress: called with the number of pictures so far.
    """
    source = folder / STATE / FETCHED
    own = column_types(line["metadata"] for line in wanted_lines(source))
    types = {name: kind for name, kind in own.items() if name not in _TAKEN}
    target = _target(plan, types, decode, sign)
    done: dict[str, list[str]] = {name: [] for name in plan.splits.names}  # groups
    counts = dict.fromkeys(plan.splits.names, 0)
    for group in _groups(plan, fetched_pictures(source)):
        name = target.name(group.split, group.number)
        _write_group(target, folder, name, group.pictures)
        done[group.split].append(name)
        counts[group.split] += len(group.pictures)
        if progress is not None:
            progress(sum(counts.values()))
    if target.folders:
        for split, names in done.items():
            _write_metadata(folder, split, names, types)
    facts = _write_manifest(folder, done, types)
    for row in failed_rows(source):
        facts.statistics.add(row)
    statistics = facts.statistics.to_json().encode()
    write_whole(folder / STATISTICS, statistics)
    samples = _samples(source, own) if plan.target == "webdataset" else None
    write_card(folder, plan.license, plan.title, facts, counts, target.pattern, types, samples)
    write_whole(folder / WHOLE, plan.to_json().encode())
    shutil.rmtree(folder / STATE)
    return exported(plan, statistics)


def _samples(source: Path, types: dict[str, pa.DataType]) -> dict[str, pa.DataType]:
    """The users' columns as they stand beside a picture: what others hold as JSON is no text."""
    told = (line["metadata"].items() for line in wanted_lines(source))
    objects = {
        name for columns in told for name, value in columns if isinstance(value, dict | list)
    }
    return {
        name: pa.json_() if name in objects and pa.types.is_string(kind) else kind
        for name, kind in types.items()
    }


def exported(plan: Plan, statistics: bytes) -> Exported:
    """What a whole data set holds, as its ``statistics.json`` tells.

    Raises:
        Conflict: they are not those of such a set.
    """
    counts = dict.fromkeys(plan.splits.names, 0)
    try:
        told = json.loads(statistics)
        for one in told["shards"]:
            found = _SPLIT_OF_SHARD.match(one["shard"])
            counts[found[1] if found else ""] += one["pictures"]
        return Exported(counts, sum(lane["failed"] for lane in told["lanes"].values()))
    except (ValueError, LookupError, TypeError, AttributeError):
        raise _taken(f"{STATISTICS} of this export cannot be read") from None


def _target(
    plan: Plan, types: dict[str, pa.DataType], decode: Decode | None, sign: Sign | None
) -> Target:
    match plan.target:
        case "imagefolder":
            return ImageFolder(decode, plan.kind, sign)
        case "webdataset":
            return ShardTarget(Webdataset(captions=True), decode, plan.kind, sign)
        case "parquet":
            return ShardTarget(Parquet(types), decode, plan.kind, sign)
        case "tokens":
            return ShardTarget(Tokens(types), None, plan.kind)


def _groups(plan: Plan, pictures: Iterable[FetchedPicture]) -> Iterator[_Group]:
    """Up to a shard's pictures and pixels, in the order of the job."""
    waiting: dict[str, list[FetchedPicture]] = {name: [] for name in plan.splits.names}
    pixels = dict.fromkeys(plan.splits.names, 0)
    numbers = dict.fromkeys(plan.splits.names, 0)
    for picture in pictures:
        row = picture.row
        spec = json.loads(row.spec)
        split = plan.splits.of(spec["prompt"] or spec["embeds"] or "")
        size = row.width * row.height
        held = waiting[split]
        if held and (len(held) == plan.shard_size or pixels[split] + size > SHARD_PIXELS):
            yield _Group(split, numbers[split], held)
            waiting[split], pixels[split] = [], 0
            numbers[split] += 1
        waiting[split].append(picture)
        pixels[split] += size
    for split, held in waiting.items():
        if held:
            yield _Group(split, numbers[split], held)


def _rows_file(folder: Path, name: str) -> Path:
    return folder / STATE / ROWS / f"{name.replace('/', '-')}.parquet"


def _write_group(target: Target, folder: Path, name: str, pictures: list[FetchedPicture]) -> None:
    path, rows = folder / name, _rows_file(folder, name)
    if rows.exists():
        return
    if path.is_dir():  # whole, but its rows were not written
        shutil.rmtree(path)
    loaded = [picture.loaded() for picture in pictures]
    tokens = [picture.tokens() for picture in loaded]
    written = zip(target.write(path, loaded), tokens, strict=True)
    write_whole(rows, write_part(row._replace(tokens=grid) for row, grid in written))


def _columns(
    rows: Sequence[ManifestRow], types: dict[str, pa.DataType]
) -> Iterator[tuple[ManifestRow, dict[str, Any]]]:
    """Each row and its columns."""
    for row, fixed in zip(rows, fixed_values(rows), strict=True):
        yield row, fixed | own_values(row.metadata, types)


def _write_metadata(
    folder: Path, split: str, names: list[str], types: dict[str, pa.DataType]
) -> None:
    """``metadata.parquet``, in which the loader ``imagefolder`` looks for columns. From JSON lines
    it would guess types, for each split others."""
    if not names:
        return
    types = {name: kind for name, kind in types.items() if not _FILE_COLUMN.fullmatch(name)}
    (folder / split / "metadata.jsonl").unlink(missing_ok=True)  # of an earlier version
    with _table(folder, f"{split}/metadata.parquet", {"file_name": pa.string()}, types) as add:
        for name in names:
            rows = read_part(_rows_file(folder, name).read_bytes())
            add(
                {"file_name": f"{Path(name).name}/{row.file}", **columns}
                for row, columns in _columns(rows, types)
            )


def _write_manifest(
    folder: Path, groups: dict[str, list[str]], types: dict[str, pa.DataType]
) -> CardFacts:
    """``manifest.parquet``: every picture, and where it lies."""
    facts = CardFacts()
    with _table(folder, MANIFEST, dict.fromkeys(PLACES, pa.string()), types) as add:
        for split, names in groups.items():
            for name in names:
                rows = read_part(_rows_file(folder, name).read_bytes())
                facts.add(name, rows)
                add(
                    {"split": split, "shard": name, "file": row.file, **told}
                    for row, told in _columns(rows, types)
                )
    return facts


@contextlib.contextmanager
def _table(
    folder: Path, name: str, places: dict[str, pa.DataType], types: dict[str, pa.DataType]
) -> Iterator[Callable[[Iterable[dict[str, Any]]], None]]:
    """A file of rows, which come in groups; it is there when it is whole."""
    schema = pa.schema({**places, **FIXED, **types})
    schema = schema.with_metadata({"huggingface": hugging_face(schema)})
    draft = folder / STATE / "table"
    with pq.ParquetWriter(draft, schema, compression="zstd", version="2.6") as out:
        yield lambda rows: out.write_table(pa.Table.from_pylist(list(rows), schema))
    draft.replace(folder / name)
