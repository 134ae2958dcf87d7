"""``farm submit``."""

from typing import Annotated, Any

import typer

from farm.cli.flags import JOB_FLAGS, RENDER_FLAGS, Column, InputFormat, with_flags
from farm.cli.input_files import FORMAT_NAMES, Source, looks_like_file, open_source
from farm.cli.output import (
    fail,
    go_on_also_with,
    go_on_with,
    list_rejected,
    say,
    say_error,
    say_json,
)
from farm.cli.parse_values import parse_value
from farm.errors import InvalidInput
from farm_client import AllRejected, Farm
from farm_client.job import Job
from farm_client.submission import make_key


@with_flags(RENDER_FLAGS | JOB_FLAGS)
def submit(
    inputs: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="PROMPT…|FILE|-",
            help="Prompts, or a file: .jsonl .json .csv .tsv .parquet .txt; - is standard input.",
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
    wait: Annotated[bool, typer.Option("--wait", help="Wait until the job has ended.")] = False,
    output: Annotated[
        str | None,
        typer.Option(
            "--output",
            "-o",
            metavar="DIR",
            help="Wait, and fetch the pictures.",
            show_default=False,
        ),
    ] = None,
    timeout: Annotated[
        float | None, typer.Option(metavar="S", help="Longest wait.", show_default=False)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    **given: str | None,
) -> int:
    """Submit prompts or a file of renders as one job, and print its id.

    Parameters given as flags apply to every prompt; with a file, to the renders that do not set
    them. Renders that are refused are listed, and the others are taken.
    """
    parameters, options = _parse(given)
    words = list(inputs or ())
    file = words[0] if len(words) == 1 and (words[0] == "-" or looks_like_file(words[0])) else None
    if file is not None and prompt:
        raise InvalidInput("give prompts or a file, not both", field="prompt")
    if file is None and (input_format or column):
        raise InvalidInput("only a file has that", field="--column" if column else "--input-format")
    farm = Farm()
    try:
        if file is not None:
            job = _submit_file(farm, file, input_format, column, parameters, options)
        else:
            job = _submit_prompts(farm, [*words, *(prompt or ())], parameters, options)
    except AllRejected as error:
        if file or len(error.rejected) > 1:  # of a single prompt the error itself says it all
            list_rejected(error.rejected, file or "prompts")
        return fail(error)
    try:
        _tell(job, file or "prompts", as_json=as_json)
    except BaseException:  # the job is there, whatever became of its line
        say_error(f"job {job.id} was made")
        raise
    return _go_on(job, wait, output, timeout)


def _tell(job: Job, source: str, *, as_json: bool) -> None:
    if job.rejected:
        list_rejected(job.rejected, source)
        total = job.rejected_count + (job.accepted or 0)
        say_error(f"{job.accepted:,} of {total:,} renders taken, {job.rejected_count:,} refused")
    if as_json:
        facts = job.status().model_dump(mode="json")
        refused = [one.error.to_dict() for one in job.rejected]
        say_json({**facts, "created": job.created, "accepted": job.accepted, "errors": refused})
    else:
        say(job.id)


def _parse(given: dict[str, str | None]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The values of the flags: parameters of the renders, and options of the job."""
    values = {name: parse_value(name, text) for name, text in given.items() if text is not None}
    parameters = {name: value for name, value in values.items() if name in RENDER_FLAGS}
    options = {name: value for name, value in values.items() if name in JOB_FLAGS}
    if "idempotency_key" not in options:
        options["idempotency_key"] = make_key()
        go_on_also_with("--idempotency-key", options["idempotency_key"])
    return parameters, options


def _submit_prompts(
    farm: Farm, prompts: list[str], parameters: dict[str, Any], options: dict[str, Any]
) -> Job:
    if not prompts and "embeds" not in parameters:
        raise InvalidInput(
            "there is nothing to draw", field="prompt", hint='farm submit "a red bicycle"'
        )
    if len(prompts) <= 1:
        return farm.submit(prompts[0] if prompts else None, **parameters, **options)
    return farm.submit(prompts, **parameters, **options)


def _submit_file(
    farm: Farm,
    file: str,
    kind: str | None,
    column: str | None,
    parameters: dict[str, Any],
    options: dict[str, Any],
) -> Job:
    if kind is not None and kind not in FORMAT_NAMES:
        raise InvalidInput(
            f"unknown file format {kind!r}",
            field="--input-format",
            hint=f"known are {', '.join(FORMAT_NAMES)}",
        )
    if "seed" in parameters:
        options["seed"] = parameters.pop("seed")
    source: Source = open_source(file, kind, column, parameters)
    if source.ignored:
        shown = ", ".join(title[:40] for title in source.ignored[:12])
        say_error(f"note: columns that are no parameters are ignored: {shown}")
    if not source.merged:
        options["defaults"] = parameters
    return farm.submit_many(source.requests, **options)


def _go_on(job: Job, wait: bool, output: str | None, timeout: float | None) -> int:
    if output is not None:
        from farm.cli.fetch import fetch_job

        go_on_with(["farm", "fetch", job.id, "-o", output])
        return fetch_job(job, output, timeout=timeout)
    if wait or timeout is not None:
        from farm.cli.watch import watch_job

        go_on_with(["farm", "watch", job.id])
        return watch_job(job, timeout=timeout)
    return 0
