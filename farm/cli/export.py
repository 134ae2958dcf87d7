"""``farm export``."""

import hashlib
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from farm.cli.arguments import JobId, Parallel, SummaryAsJson, Threads
from farm.cli.output import counter, fail, go_on_with, pictures, say, say_error, say_json
from farm.cli.signing import Certificate, Key, Signing, signer
from farm.cli.token_decoder import TokenDecoder
from farm.cli.watch import tell_end
from farm.disk import writing_to
from farm.errors import InvalidInput
from farm.job import OPTIONS, Format
from farm.paths import data_dir
from farm_client import Farm, Job, JobStatus
from farm_client.fetch import PARALLEL
from farm_client.output_folder import OutputFolder
from farm_client.scores import read_scores

if TYPE_CHECKING:
    from farm.export.duplicates import Dedup
    from farm.export.export import Exported
    from farm.export.fetched import Decode
    from farm.export.where import Where

TARGETS = ("webdataset", "parquet", "imagefolder", "tokens")


def export(
    job: JobId,
    output: Annotated[
        str, typer.Option("--output", "-o", metavar="DIR", help="Or s3://BUCKET/PREFIX.")
    ],
    as_: Annotated[str, typer.Option("--as", metavar="KIND", help=f"{', '.join(TARGETS)}.")],
    split: Annotated[
        str | None,
        typer.Option(
            metavar="SHARES",
            help="By a hash of the prompt: train=0.9,test=0.1.",
            show_default=False,
        ),
    ] = None,
    shard_size: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help=f"{OPTIONS['shard_size'].help}.", show_default=False),
    ] = None,
    format: Annotated[  # noqa: A002
        Format, typer.Option(help="Of pictures that are decoded from tokens.")
    ] = Format.PNG,
    license: Annotated[  # noqa: A002
        str, typer.Option(metavar="ID", help="Of the data set, for its card.")
    ] = "unknown",
    where: Annotated[
        str | None,
        typer.Option(
            metavar="CONDITION",
            help='On the columns: "nsfw < 0.1 and confidence > 0.4".',
            show_default=False,
        ),
    ] = None,
    dedup: Annotated[
        str | None,
        typer.Option(
            metavar="pdq:BITS",
            help="Of pictures that look alike, only the most confident.",
            show_default=False,
        ),
    ] = None,
    checkpoint: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="What decodes tokens, as for render; may be repeated."),
    ] = None,
    threads: Threads = 0,
    parallel: Parallel = PARALLEL,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace another export in the folder.")
    ] = False,
    sign: Signing = False,
    certificate: Certificate = None,
    key: Key = None,
    as_json: SummaryAsJson = False,
) -> int:
    """Write a job's pictures as a data set, with its manifest, card and splits. Waits for the job;
    an export that was interrupted goes on where it was."""
    from farm.export.duplicates import Dedup
    from farm.export.export import FETCHED, STATE, Plan, alone, begin, exported, is_settled
    from farm.export.export import export as write
    from farm.export.fetched import wanted_lines
    from farm.export.splits import Splits
    from farm.export.statistics import STATISTICS
    from farm.export.upload import holds, upload
    from farm.export.where import Where
    from farm.job import SHARD_PICTURES
    from farm.store import open_store

    if as_ not in TARGETS:
        raise InvalidInput(
            f"{as_[:40]!r} is not a kind of data set", field="--as", hint=", ".join(TARGETS)
        )
    if format is Format.TOKENS:
        raise InvalidInput("tokens are not a picture", field="--format", hint="--as tokens")
    if sign and as_ == "tokens":
        raise InvalidInput("tokens cannot be signed", field="--sign", hint="--as webdataset …")
    signed = signer(certificate, key) if sign else None
    splits = Splits.parse(split)
    condition = None if where is None else Where.parse(where)
    alike = None if dedup is None else Dedup.parse(dedup)
    found = Farm().job(job)
    status = found.status()
    plan = Plan(
        job=found.id,
        target=as_,  # type: ignore[arg-type]  # one of them, as was checked
        splits=splits,
        shard_size=shard_size or SHARD_PICTURES,
        kind=format,
        license=license,
        title=status.name or found.id,
        generation=status.generation,
        signed=sign,
        where=where,
        dedup=dedup,
    )
    store = open_store(output) if "://" in output else None
    folder = Path(output) if store is None else _work_folder(found.id, output)
    go_on_with(_command(job, output, as_, {
        "--split": [split], "--shard-size": [shard_size], "--format": [format.value],
        "--license": [license], "--where": [where], "--dedup": [dedup],
        "--checkpoint": checkpoint or [], "--threads": [threads], "--parallel": [parallel],
        "--certificate": [certificate if sign else None], "--key": [key if sign else None],
    }, sign=sign))  # fmt: skip
    if store is not None and not overwrite and holds(store, plan):
        say_error(f"{output} is whole already")
        return _tell(found.status(), output, exported(plan, store.get(STATISTICS)), as_json)
    with writing_to(folder, "--output"), alone(folder):
        if begin(plan, folder, overwrite=overwrite):
            source = folder / STATE / FETCHED
            if not OutputFolder(source, found.id).whole:
                # Where a retry has taken the manifest, nothing says whose pictures lie there.
                found.fetch(source, parallel=parallel, progress=counter(), resume=True, shards=True)
            if next(wanted_lines(source), None) is None:
                shutil.rmtree(folder / STATE)  # another job's may go here
                return fail(InvalidInput(f"job {job} has no pictures", field="job"))
            if not is_settled(folder):
                _select(found, source, condition, alike)
            tokens = as_ == "tokens"
            decode = None if tokens else _decoder(wanted_lines(source), checkpoint or [], threads)
            done = write(plan, folder, decode, signed, counter("writing "))
            say_error(f"{pictures(done.pictures)} in {output}, {done.failed:,} failed")
        else:
            done = exported(plan, (folder / STATISTICS).read_bytes())
            say_error(f"{folder} is whole already")
        if store is not None:
            sent = upload(folder, store, overwrite=overwrite)
            shutil.rmtree(folder)
            say_error(f"{sent.files:,} files, {sent.sent:,} sent")
    return _tell(found.status(), output, done, as_json)


def _tell(status: JobStatus, output: str, done: "Exported", as_json: bool) -> int:
    if as_json:
        say_json({"folder": output, "pictures": done.pictures, "splits": done.splits})
    else:
        say(output)
    return tell_end(status, quiet=True) or (1 if done.failed else 0)


def _select(job: Job, folder: Path, where: "Where | None", dedup: "Dedup | None") -> None:
    from farm.export.selection import select

    found = select(folder, (one for _, one in read_scores(job)), where, dedup)
    if found is not None and (where or dedup):
        say_error(
            f"{pictures(found.pictures)}: {found.unwanted:,} not wanted, "
            f"{found.duplicates:,} duplicates"
        )


def _command(
    job: str, output: str, kind: str, flags: Mapping[str, Sequence[Any]], *, sign: bool
) -> list[str]:
    """What continues this export: all that decides its bytes, and not what would remove it."""
    words = ["farm", "export", job, "-o", output, "--as", kind, *(["--sign"] if sign else [])]
    for flag, values in flags.items():
        for value in values:
            words += [] if value is None else [flag, str(value)]
    return words


def _decoder(lines: Iterable[Mapping[str, Any]], names: list[str], threads: int) -> "Decode | None":
    """What makes pictures of the tokens among those of a manifest; None if there are none."""
    from farm.export.fetched import TOKEN_FILES

    decoder, needed = TokenDecoder(names, threads), False
    for told in lines:
        if told["file"].endswith(TOKEN_FILES):
            spec, needed = told["spec"], True
            decoder.check(spec["mode"], spec["checkpoint"], told["numerics"])
    return decoder if needed else None


def _work_folder(job: str, output: str) -> Path:
    """Where a data set that goes to a store is written first; the same for the same call."""
    name = hashlib.sha256(f"{job} {output}".encode()).hexdigest()[:16]
    return data_dir() / "exports" / name
