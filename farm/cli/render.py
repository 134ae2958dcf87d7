"""``farm render``: a file of requests in this process, without a farm."""

import json
import secrets
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from farm.cli.adapter import read_adapter
from farm.cli.arguments import SummaryAsJson, Threads
from farm.cli.columns import Columns
from farm.cli.flags import Column, InputFormat, Limit, Overwrite, Resume, Sample, SampleSeed
from farm.cli.input_files import Reading, read_files
from farm.cli.job_file import read_job_file
from farm.cli.output import (
    fetches_told,
    go_on_also_with,
    list_rejected,
    say,
    say_error,
    say_json,
    say_note,
)
from farm.cli.selection import Selection
from farm.disk import writing_to
from farm.errors import FarmError, InvalidInput, RejectedRender
from farm.job import MAX_PIECE_LINES, OPTIONS, Chunk, Format, JobOptions
from farm.renders import NumberedSpec, Renders
from farm.spec import FILE_FIELDS, Lane
from farm_client.inputs import ADAPTERS, adapter_files, asset_id, read_input, with_adapters
from farm_client.ndjson import Line, completed, pieces
from farm_client.output_folder import MANIFEST, OutputFolder
from farm_client.parameters import OnError, check_on_error

if TYPE_CHECKING:
    from farm.formats.manifest import ManifestRow
    from farm.sinks.protocol import Sink

OWNER = "render"  # of the folder, until its manifest is there
JOB = "local"  # in the manifest, where the farm has a job's id
TENANT = "local"


def render(
    files: Annotated[
        list[str],
        typer.Argument(metavar="FILE…", help="As for submit: .jsonl .csv .yaml …, folders, or -."),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DIR")],
    checkpoint: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME", help="A directory, built-in name or hub id@revision; may be repeated."
        ),
    ] = None,
    format: Annotated[  # noqa: A002
        Format | None, typer.Option(help="Of the picture files; default png.", show_default=False)
    ] = None,
    sink: Annotated[
        str | None,
        typer.Option(metavar="NAME", help=f"{OPTIONS['sink'].help}; default images."),
    ] = None,
    shard_size: Annotated[
        int | None,
        typer.Option(metavar="N", help=f"{OPTIONS['shard_size'].help}.", show_default=False),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(metavar="N", help=f"{OPTIONS['seed'].help}.", show_default=False)
    ] = None,
    adapter: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=FILE",
            help="An adapter that renders name; may be repeated.",
            show_default=False,
        ),
    ] = None,
    alpha: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=A", help="Of an adapter whose file does not say it.", show_default=False
        ),
    ] = None,
    column: Column = None,
    input_format: InputFormat = None,
    limit: Limit = None,
    sample: Sample = None,
    sample_seed: SampleSeed = None,
    threads: Threads = 0,
    overwrite: Overwrite = False,
    resume: Resume = False,
    as_json: SummaryAsJson = False,
) -> int:
    """Render a file of requests in this process: the same pictures and manifest as from a farm."""
    from farm.ingest.chunks import shard_size_of
    from farm.sinks.registry import Sinks
    from farm.store.local import ReplacingStore
    from farm_workers.local_renderer import LocalRenderer

    reading = Reading(input_format, Columns.parse(column or ()), say_note)
    selection = Selection(limit, sample, sample_seed)
    lines, in_file, on_error = _read(files, reading, selection, seeded=seed is not None)
    given = {"sink": sink, "format": format, "shard_size": shard_size, "seed": seed}
    flags = {name: one for name, one in given.items() if one is not None}
    options = JobOptions.parse({**in_file, **flags})
    job_seed = secrets.randbits(48) if options.seed is None else options.seed
    folder = OutputFolder(output, OWNER)
    if not overwrite:
        folder.check(resume=resume)
    if not resume:
        go_on_also_with("--resume")
    with tempfile.TemporaryDirectory(prefix="farm-render-") as scratch:
        store_in = Sinks(ReplacingStore(output), Path(scratch) / "waiting").get(options.sink)
        shard_size = shard_size_of(options, store_in)
        local = _Requests(checkpoint, Path(scratch), job_seed, stop=on_error == "stop")
        local.add_adapters(adapter or (), alpha or ())
        engines = local.load_engines(threads)
        # Only now is the folder touched: everything that the pictures need is there.
        known = folder.claim(overwrite=overwrite, resume=resume, seed=job_seed)
        if options.seed is None:
            local.seed = known.get("seed", job_seed)  # of the call that this one continues
        renderer = LocalRenderer(engines, local.infos, local.read_asset, store_in, resume)
        chunks = local.chunks(lines, options, shard_size)
        started = time.monotonic()
        rows = _listed(renderer.render(chunks), store_in, output)
    folder.finish()
    if local.rejected:
        list_rejected(local.rejected, files[0])
    failed = sum(row["error"] is not None for row in rows)
    if as_json:
        summary = {"images": {"total": len(rows), "done": len(rows) - failed, "failed": failed}}
        seconds = round(time.monotonic() - started, 3)
        refused = len(local.rejected)
        say_json({**summary, "rejected": refused, "seconds": seconds, "output": str(output)})
    else:
        say(str(output / MANIFEST))
        say_error(f"{len(rows) - failed} pictures in {output}, {failed} failed")
    if not rows:
        return InvalidInput.exit_code
    return 1 if failed else 0


def _listed(made: "Iterator[ManifestRow]", sink: "Sink", output: Path) -> list[dict[str, Any]]:
    """The rows as people see them, in order; the manifest has them, however the run ends."""
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from farm.sinks.parts import public_row, source_of

    rows: list[dict[str, Any]] = []
    bar = Progress(
        TextColumn("{task.description}"),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=Console(stderr=True),
        disable=not sys.stderr.isatty(),
    )
    try:
        with bar:
            task = bar.add_task("pictures", total=None)
            for row in made:
                rows.append(public_row(row, source_of(row, sink)))
                bar.update(task, completed=len(rows))
    finally:
        rows.sort(key=lambda row: (row["render"], row["image"]))
        with (
            writing_to(output, "--output"),
            (output / MANIFEST).open("w", encoding="utf-8") as out,
        ):
            out.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    return rows


def _read(
    files: list[str], reading: Reading, selection: Selection, *, seeded: bool
) -> tuple[Iterator[Line], Mapping[str, Any], OnError]:
    """The renders, and the options and what to do with refused renders that a job file gives.

    ``seeded``: a flag gives the job's seed, which comes before the file's.
    """
    job = read_job_file(files[0], reading) if len(files) == 1 else None
    if job is None:
        return completed(selection.of(read_files(files, reading)), {}), {}, "skip"
    defaults, sweep = job.defaults, job.sweep
    if seeded:
        defaults = {name: value for name, value in defaults.items() if name != "seed"}
        sweep = sweep.without({"seed"})
    lines = selection.over(job.selection).of(job.lines)
    return completed(lines, defaults, sweep), job.options, check_on_error(job.on_error)


class _Requests:
    """Lines become specs by the rules of the farm's own ingest, with files instead of uploads."""

    def __init__(self, names: list[str] | None, scratch: Path, seed: int, *, stop: bool) -> None:
        from farm.checkpoints.inspect import inspect_checkpoint
        from farm.checkpoints.references import built_in
        from farm.checkpoints.registry import CheckpointRegistry
        from farm.ingest.adapters import Adapters
        from farm.ingest.assets import Assets
        from farm.ingest.resolver import Resolver
        from farm.store import open_store

        chosen = names or list(built_in())
        if not chosen:
            raise InvalidInput(
                "which checkpoint?",
                field="--checkpoint",
                hint="farm checkpoint make-tiny makes one",
            )
        with fetches_told():
            self._checkpoints = [inspect_checkpoint(name) for name in chosen]
        self.infos = {checkpoint.info.name: checkpoint.info for checkpoint in self._checkpoints}
        store, registry = open_store(str(scratch)), CheckpointRegistry(self.infos.values())
        self._assets = Assets(store)
        self._adapters = Adapters(store, self._assets, registry)
        self._resolver = Resolver(registry, self._assets, self._adapters)
        self.seed = seed
        self._stop = stop  # at the first render that is refused
        self.rejected: list[RejectedRender] = []

    def add_adapters(self, files: Sequence[str], alphas: Sequence[str]) -> None:
        """``NAME=FILE`` and ``NAME=A`` of the command line."""
        numbers = dict(_pair(text, "--alpha") for text in alphas)
        named = dict(_pair(text, "--adapter") for text in files)
        if unknown := numbers.keys() - named.keys():
            raise InvalidInput(f"there is no --adapter {min(unknown)}", field="--alpha")
        for name, file in named.items():
            try:
                alpha = float(numbers[name]) if name in numbers else None
            except ValueError:
                raise InvalidInput(f"{numbers[name]!r} is not a number", field="--alpha") from None
            self._adapters.add(TENANT, name, read_adapter(Path(file)), alpha=alpha)

    def load_engines(self, threads: int) -> Mapping[str, Any]:
        from farm_workers.worker.load_engine import load_engine

        return {
            checkpoint.info.name: load_engine(checkpoint, threads=threads)
            for checkpoint in self._checkpoints
        }

    def read_asset(self, asset: str) -> bytes:
        return self._assets.read(TENANT, asset)

    def chunks(
        self, lines: Iterator[Line], options: JobOptions, shard_size: int | None
    ) -> Iterator[Chunk]:
        """Cut as the farm cuts the same lines; what goes nowhere else is not held back."""
        from farm.ingest.chunks import Cutter, TaskLimits

        def limits(lane: Lane) -> TaskLimits:
            return TaskLimits.of_shard(shard_size or 1, lane)

        cutter = Cutter(JOB, TENANT, options.sink, options.format, limits)
        first = 0
        for number, piece in enumerate(pieces(lines, MAX_PIECE_LINES if shard_size else 1)):
            yield from cutter.cut(number, Renders.of(self._resolved(piece, first)))
            first += len(piece)

    def _resolved(self, lines: Sequence[Line], first: int) -> Iterator[NumberedSpec]:
        batch = self._resolver.batch(TENANT, seed=self.seed)
        for render, line in enumerate(lines, first):
            try:
                if line.error is not None:
                    raise line.error
                numbered = batch.resolve(self._with_assets(line), render)
            except FarmError as error:
                error.at(line.number, line.place(error.field))
                if self._stop:
                    raise
                self.rejected.append(RejectedRender(render, error, line.file))
            else:
                yield numbered

    def _with_assets(self, line: Line) -> Any:
        from farm import strict_json

        data = line.data if line.data is not None else strict_json.loads(line.text, line=1)
        if not isinstance(data, Mapping):
            return data
        ids = {}
        for field, kind in FILE_FIELDS.items():
            value = data.get(field)
            if value is not None and asset_id(value) is None and not _is_data_url(value):
                content = read_input(value, field, line.base)
                ids[field] = self._assets.add(TENANT, content, kind).id
        adapters = {
            place: self._assets.add(TENANT, read_input(value, ADAPTERS, line.base), "adapter").id
            for place, value in adapter_files(data).items()
        }
        return with_adapters({**data, **ids}, adapters)


def _pair(text: str, flag: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not value:
        raise InvalidInput(f"{text[:80]!r} is not NAME=VALUE", field=flag)
    return name, value


def _is_data_url(value: object) -> bool:
    return isinstance(value, str) and value.startswith("data:")
