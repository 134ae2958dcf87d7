"""``farm submit``."""

import contextlib
import os
from collections.abc import Iterable, Iterator
from typing import Annotated, Any, NamedTuple

import typer

from farm import garbage
from farm.cli.arguments import AsJson
from farm.cli.columns import Columns
from farm.cli.dry_run import tell_estimate
from farm.cli.fetch import fetch_job
from farm.cli.flags import (
    JOB_FLAGS,
    RENDER_FLAGS,
    Column,
    InputFormat,
    Limit,
    Overwrite,
    Resume,
    Sample,
    SampleSeed,
    with_flags,
)
from farm.cli.input_files import Reading, looks_like_file, read_files
from farm.cli.job_file import JobFile, read_job_file
from farm.cli.output import (
    fail,
    go_on_also_with,
    go_on_with,
    list_rejected,
    say,
    say_error,
    say_json,
    say_note,
)
from farm.cli.parse_values import parse_value, parse_values
from farm.cli.selection import Selection
from farm.errors import InvalidInput
from farm_client import AllRejected, Farm
from farm_client.job import Job
from farm_client.output_folder import OutputFolder
from farm_client.submission import make_key
from farm_client.sweep import Sweep


@with_flags(RENDER_FLAGS | JOB_FLAGS)
def submit(
    inputs: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="PROMPT…|FILE…|-",
            help="Prompts, or files and folders: .jsonl .json .csv .tsv .parquet .txt, compressed "
            "or not; a job file: .yaml .json; - is standard input.",
            show_default=False,
        ),
    ] = None,
    *,
    prompt: Annotated[
        list[str] | None,
        typer.Option(metavar="TEXT", help="A prompt; may be repeated.", show_default=False),
    ] = None,
    column: Column = None,
    input_format: InputFormat = None,
    limit: Limit = None,
    sample: Sample = None,
    sample_seed: SampleSeed = None,
    zipped: Annotated[
        bool,
        typer.Option("--zip", help="Lists of values go together, the first with the first."),
    ] = False,
    on_error: Annotated[
        str | None,
        typer.Option(
            metavar="WHAT",
            help="If a render is refused: skip it, or stop and accept none. Default: skip.",
            show_default=False,
        ),
    ] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Exit status 2 if a render was refused.")
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Tell what it would come to, and submit nothing."),
    ] = False,
    wait: Annotated[bool, typer.Option("--wait", help="Wait until the job has ended.")] = False,
    output: Annotated[
        str | None,
        typer.Option(
            "--output",
            "-o",
            metavar="DIR",
            help="Wait, and fetch the pictures into this folder.",
            show_default=False,
        ),
    ] = None,
    overwrite: Overwrite = False,
    resume: Resume = False,
    timeout: Annotated[
        float | None, typer.Option(metavar="S", help="Longest wait.", show_default=False)
    ] = None,
    as_json: AsJson = False,
    **given: Any,
) -> int:
    """Submit prompts or files of renders as one job and print its id.

    Parameters given as flags apply to every prompt; with a file, to the renders that do not set
    them. Several values, as in --guidance-scale 3,6,10 --seed 1..4, make a render of each
    combination; flags of texts and files are repeated for that. Renders that are refused are
    listed; the others are accepted.
    """
    words = list(inputs or ())
    prompts = list(prompt or ())
    files = _files_among(words, prompts)
    reading = Reading(input_format, Columns.parse(column or ()), say_note)
    selection = Selection(limit, sample, sample_seed)
    if not files:
        _only_with_files(input_format, column, selection)
        prompts = [*words, *prompts]
    asked = _parse(given, selection, on_error, zipped)
    if "idempotency_key" not in asked.options:
        go_on_also_with("--idempotency-key", asked.own_key)
    if not files and not prompts and "embeds" not in asked.parameters.keys() | asked.sweep.names:
        raise InvalidInput("nothing to draw", field="prompt", hint='farm submit "a red circle"')
    source = files[0] if len(files) == 1 else "files" if files else "prompts"
    if dry_run:
        requests, options = _renders(files, prompts, reading, asked)
        estimate = Farm().estimate(requests, **options)
        return tell_estimate(estimate, source, as_json=as_json, strict=strict)
    if output is not None:
        OutputFolder(output, "").try_out()  # now: a job would have been made for nothing
    if output is not None and not overwrite and given["idempotency_key"] is None:
        OutputFolder(output, "").check(resume=resume)
    try:
        job = _submit(Farm(), files, prompts, reading, asked)
    except AllRejected as error:
        if files or len(error.rejected) > 1:  # of a single prompt the error itself says it all
            list_rejected(error.rejected, source)
            error.hint = None  # it repeats the first of the list
        return fail(error)
    if job.rejected:
        _tell_refused(job, source)
    if given["idempotency_key"] is not None and job.created is False:
        say_note(f"{job.id} was made by an earlier call with this key; nothing new was submitted")
    goes_on = wait or output is not None or timeout is not None
    with _known(job):
        if not as_json:
            say(job.id)
        elif not goes_on:
            _say_job(job)
    if output is not None:
        go_on_with(["farm", "fetch", job.id, "-o", output])
        code = fetch_job(job, output, timeout=timeout, overwrite=overwrite, resume=resume)
    else:
        code = _go_on(job, wait, timeout)
    if as_json and goes_on:
        with _known(job):
            _say_job(job)
    return InvalidInput.exit_code if strict and job.rejected_count and code == 0 else code


@contextlib.contextmanager
def _known(job: Job) -> Iterator[None]:
    """The job is there, whatever becomes of the line that tells of it."""
    try:
        yield
    except BaseException:
        say_error(f"job {job.id} was made")
        raise


def _only_with_files(
    input_format: str | None, column: list[str] | None, selection: Selection
) -> None:
    asked = {
        "--input-format": input_format, "--column": column, "--limit": selection.limit,
        "--sample": selection.sample,
    }  # fmt: skip
    for flag, value in asked.items():
        if value:
            raise InvalidInput("only a file has that", field=flag)


def _tell_refused(job: Job, source: str) -> None:
    list_rejected(job.rejected, source)
    total = job.rejected_count + (job.accepted or 0)
    say_error(f"{job.accepted:,} of {total:,} renders accepted, {job.rejected_count:,} refused")


def _say_job(job: Job) -> None:
    """As it is now: after a wait, how it has ended."""
    facts = job.status().model_dump(mode="json")
    refused = [one.error.to_dict() for one in job.rejected]
    say_json({**facts, "created": job.created, "accepted": job.accepted, "errors": refused})


def _on_open(job: str, there: bool, key: str) -> None:
    """A long submission has a job, to which the same command comes back; with its key even if it
    was interrupted while the farm closed the job."""
    if there:
        say_error(f"{job} was left unfinished by an earlier call; continuing it")
    go_on_also_with("--idempotency-key", key, reached=f"a part of {job} is there")


class _Asked(NamedTuple):
    """What the flags and the job file say, besides the renders."""

    parameters: dict[str, Any]
    options: dict[str, Any]
    sweep: Sweep
    selection: Selection
    on_error: str | None
    own_key: str  # where the user has given none

    def keyed(self) -> dict[str, Any]:
        """The options, with an idempotency key in any case."""
        return {"idempotency_key": self.own_key, **self.options}

    def bulk(self) -> dict[str, Any]:
        """As ``submit_many`` takes it."""
        resume = {} if "idempotency_key" in self.options else {"resume": _on_open}
        return {
            **self.keyed(),
            **resume,
            "defaults": dict(self.parameters),
            "matrix": self.sweep.matrix,
            "zip": self.sweep.zipped,
            "on_error": self.on_error,
        }

    def over(self, file: JobFile) -> "_Asked":
        """The flags come before what the file says."""
        mine, his = self.selection, file.selection
        swept = file.sweep.without(self.parameters.keys())
        return _Asked(
            {**file.defaults, **self.parameters},
            {**file.options, **self.options},
            Sweep.parse(
                dict(swept.matrix) | dict(self.sweep.matrix),
                dict(swept.zipped) | dict(self.sweep.zipped),
            ),
            mine.over(his),
            self.on_error or file.on_error,
            self.own_key,
        )


def _parse(
    given: dict[str, Any], selection: Selection, on_error: str | None, zipped: bool
) -> _Asked:
    """The values of the flags: parameters of the renders, and options of the job."""
    parameters, axes = {}, {}
    for name in RENDER_FLAGS:
        values = parse_values(name, given.get(name) or ())
        if len(values) == 1:
            parameters[name] = values[0]
        elif values:
            axes[name] = values
    options = {
        name: parse_value(name, given[name]) for name in JOB_FLAGS if given.get(name) is not None
    }
    if zipped and not axes:
        raise InvalidInput("there are no lists of values", field="--zip")
    sweep = Sweep.parse(None, axes) if zipped else Sweep.parse(axes)
    return _Asked(parameters, options, sweep, selection, on_error, make_key())


def _files_among(words: list[str], prompts: list[str]) -> list[str]:
    """The words, where they are files; prompts and files do not go together."""
    files = [word for word in words if looks_like_file(word)]
    if files and (prompts or len(files) < len(words)):
        raise InvalidInput(
            f"give prompts or files, not both; {files[0]} is a file",
            field="prompt",
            hint=f"to draw the words: --prompt {files[0]!r}",
        )
    return files


def _renders(
    files: list[str], prompts: list[str], reading: Reading, asked: _Asked
) -> tuple[Iterable[Any], dict[str, Any]]:
    """What ``submit_many`` takes: requests and options."""
    if not files:
        return prompts or [{}], asked.bulk()
    of_job = "seed" in asked.parameters  # the flag's; a job file's default is each render's own
    job_file = read_job_file(files[0], reading) if len(files) == 1 else None
    if job_file is not None:
        asked, lines = asked.over(job_file), job_file.lines
    else:
        lines = read_files(files, reading)
    bulk = asked.bulk() | {"steady": not any(map(_waits, files))}
    if of_job:
        bulk["seed"] = bulk["defaults"].pop("seed")
    return asked.selection.of(lines), bulk


def _waits(name: str) -> bool:
    """Whether it may be a while until its next line."""
    return not (os.path.isfile(name) or os.path.isdir(name))


def _submit(
    farm: Farm, files: list[str], prompts: list[str], reading: Reading, asked: _Asked
) -> Job:
    if files or asked.sweep or len(prompts) > 1:
        garbage.relax()
        requests, options = _renders(files, prompts, reading, asked)
        return farm.submit_many(requests, **options)
    return farm.submit(prompts[0] if prompts else None, **asked.parameters, **asked.keyed())


def _go_on(job: Job, wait: bool, timeout: float | None) -> int:
    if wait or timeout is not None:
        from farm.cli.watch import watch_job

        go_on_with(["farm", "watch", job.id])
        return watch_job(job, timeout=timeout)
    return 0
