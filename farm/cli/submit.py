"""``farm submit``."""

from typing import Annotated, Any

import typer

from farm.cli.input_files import Source, looks_like_file, open_source
from farm.cli.output import (
    fail,
    go_on_also_with,
    go_on_with,
    list_rejected,
    say,
    say_error,
    say_json,
)
from farm.cli.parse_values import convert
from farm.errors import InvalidInput
from farm_client import AllRejected, Farm
from farm_client.inputs import FILE_FIELDS
from farm_client.job import Job
from farm_client.submission import make_key

Text = Annotated[str | None, typer.Option(show_default=False)]


def _option(*names: str, help: str = "", metavar: str = "TEXT") -> Any:  # noqa: A002
    return typer.Option(*names, help=help, metavar=metavar, show_default=False)


def submit(
    inputs: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="PROMPT…|FILE|-",
            help="Prompts, or a file: .jsonl .json .csv .tsv .parquet .txt; - is standard input.",
            show_default=False,
        ),
    ] = None,
    prompt: Annotated[
        list[str] | None, _option("--prompt", help="A prompt; may be repeated.")
    ] = None,
    mode: Annotated[
        str | None, _option("--mode", help="text2img, img2img, inpaint; else by the files given.")
    ] = None,
    checkpoint: Annotated[
        str | None, _option("--checkpoint", help="One of the farm's, else its first.")
    ] = None,
    negative_prompt: Annotated[str | None, _option("--negative-prompt")] = None,
    height: Annotated[str | None, _option("--height", metavar="PIXELS")] = None,
    width: Annotated[str | None, _option("--width", metavar="PIXELS")] = None,
    num_inference_steps: Annotated[
        str | None, _option("--num-inference-steps", "--steps", metavar="N", help="Else 12.")
    ] = None,
    guidance_scale: Annotated[
        str | None,
        _option("--guidance-scale", "--guidance", metavar="X", help="Else the checkpoint's."),
    ] = None,
    temperature: Annotated[
        str | None, _option("--temperature", metavar="T[,T]", help="Else 2,0.")
    ] = None,
    seed: Annotated[
        str | None,
        _option(
            "--seed",
            metavar="N",
            help="Of every prompt given here; with a file, what its renders' seeds come from.",
        ),
    ] = None,
    num_images: Annotated[
        str | None,
        _option("--num-images", "--num-images-per-prompt", "-n", metavar="N", help="Per prompt."),
    ] = None,
    image: Annotated[str | None, _option("--image", metavar="FILE")] = None,
    mask_image: Annotated[
        str | None,
        _option("--mask", "--mask-image", metavar="FILE", help="White is painted anew."),
    ] = None,
    latents: Annotated[str | None, _option("--latents", metavar="FILE")] = None,
    embeds: Annotated[str | None, _option("--embeds", metavar="FILE")] = None,
    strength: Annotated[
        str | None, _option("--strength", metavar="X", help="Of img2img and inpaint.")
    ] = None,
    micro_conditioning_aesthetic_score: Annotated[
        str | None,
        _option("--micro-conditioning-aesthetic-score", "--aesthetic-score", metavar="X"),
    ] = None,
    micro_conditioning_crop_coord: Annotated[
        str | None, _option("--micro-conditioning-crop-coord", "--crop", metavar="Y,X")
    ] = None,
    adapter_scale: Annotated[str | None, _option("--adapter-scale", metavar="X")] = None,
    rng: Annotated[str | None, _option("--rng", help="farm-1 or torch.")] = None,
    name: Annotated[str | None, _option("--name", help="Of the job.")] = None,
    priority: Annotated[str | None, _option("--priority", help="urgent, normal or bulk.")] = None,
    format: Annotated[  # noqa: A002
        str | None, _option("--format", help="png, webp, jpeg or tokens.")
    ] = None,
    sink: Annotated[str | None, _option("--sink", help="images.")] = None,
    max_failed: Annotated[
        int | None, _option("--max-failed", metavar="N", help="Pictures that may fail.")
    ] = None,
    deadline: Annotated[
        str | None, _option("--deadline", metavar="TIME", help="Never start later, RFC 3339.")
    ] = None,
    idempotency_key: Annotated[
        str | None, _option("--idempotency-key", help="The same key never makes a second job.")
    ] = None,
    column: Annotated[
        str | None, _option("--column", help="Of a table: where the prompts are.")
    ] = None,
    input_format: Annotated[
        str | None, _option("--input-format", help="jsonl, json, csv, tsv, parquet or txt.")
    ] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Wait for the end.")] = False,
    output: Annotated[
        str | None, _option("--output", "-o", metavar="DIR", help="Wait, and fetch into it.")
    ] = None,
    timeout: Annotated[
        float | None, _option("--timeout", metavar="S", help="Longest wait.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> int:
    """Submit prompts or a file of renders as one job, and print its id.

    Parameters given as flags hold for every prompt; in a file, for the renders that do not say
    otherwise. Lines that cannot be rendered are listed and the others taken.
    """
    given = {
        "mode": mode, "checkpoint": checkpoint, "negative_prompt": negative_prompt,
        "height": height, "width": width, "num_inference_steps": num_inference_steps,
        "guidance_scale": guidance_scale, "temperature": temperature, "seed": seed,
        "num_images": num_images, "image": image, "mask_image": mask_image, "latents": latents,
        "embeds": embeds, "strength": strength,
        "micro_conditioning_aesthetic_score": micro_conditioning_aesthetic_score,
        "micro_conditioning_crop_coord": micro_conditioning_crop_coord,
        "adapter_scale": adapter_scale, "rng": rng,
    }  # fmt: skip
    parameters = {
        field: text if field in FILE_FIELDS else convert(field, text)
        for field, text in given.items()
        if text is not None
    }
    options: dict[str, Any] = {
        "name": name, "priority": priority, "format": format, "sink": sink,
        "max_failed": max_failed, "deadline": deadline,
    }  # fmt: skip
    options = {field: value for field, value in options.items() if value is not None}
    if idempotency_key is None:
        idempotency_key = make_key()
        go_on_also_with("--idempotency-key", idempotency_key)
    options["idempotency_key"] = idempotency_key

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
        list_rejected(error.rejected, file or "prompts")
        return fail(error)
    if job.rejected:
        list_rejected(job.rejected, file or "prompts")
        total = job.rejected_count + (job.accepted or 0)
        say_error(f"{job.accepted:,} of {total:,} renders taken, {job.rejected_count:,} refused")
    if as_json:
        facts = job.status().model_dump(mode="json")
        refused = [one.error.to_dict() for one in job.rejected]
        say_json({**facts, "created": job.created, "accepted": job.accepted, "errors": refused})
    else:
        say(job.id)
    return _go_on(job, wait, output, timeout)


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
    if kind is not None and kind not in ("jsonl", "json", "csv", "tsv", "parquet", "txt"):
        raise InvalidInput(f"{kind!r} is no kind of file", field="--input-format")
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
