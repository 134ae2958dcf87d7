"""``farm rerender``."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from farm.cli.arguments import AsJson, JobId
from farm.cli.output import one_line, say, say_error, say_json
from farm.disk import writing_to
from farm.errors import NotFound
from farm.spec import RenderRequest
from farm_client import Farm, Image, Job
from farm_client.models import Picture

KEEP = "1d"  # the new job is of no use once it was compared


def rerender(
    job: JobId,
    render: Annotated[
        int, typer.Argument(metavar="N", min=0, help="The render, from 0.", show_default=False)
    ],
    index: Annotated[
        int | None,
        typer.Option("--index", min=0, help="Only this picture of it.", show_default=False),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", metavar="DIR", help="Keep the pictures.", show_default=False
        ),
    ] = None,
    as_json: AsJson = False,
) -> int:
    """Render pictures of a job again, alone, and compare: inside one numerics class their tokens
    are the same, bit by bit. The exit code is 1 if they differ."""
    farm = Farm()
    found = sorted(_pictures(farm.job(job), render, index), key=lambda one: one.image)
    if not found:
        which = f"{render}" if index is None else f"{render}-{index}"
        raise NotFound(f"job {job} has no picture {which}", field="N")
    same = True
    for image, again in zip(found, _again(farm, found, alone=index is not None), strict=True):
        fresh, known = again.told, image.told
        equal = fresh.tokens_sha256 == known.tokens_sha256
        same &= equal
        _tell(known, fresh, equal, as_json)
        if output is not None and again.error is None:
            with writing_to(output, "--output"):
                output.mkdir(parents=True, exist_ok=True)
                kept = again.save(output / f"{Path(str(image.file)).stem}{_suffix(again)}")
            say_error(str(kept))
    return 0 if same else 1


def _pictures(job: Job, render: int, index: int | None) -> Iterator[Image]:
    """Of the render, until all of them are found."""
    count, seen = None, 0
    for image in job.images(follow=False):
        if image.render == render and image.error is None:
            count = 1 if index is not None else image.spec["num_images"]
            if index in (None, image.image):
                seen += 1
                yield image
        if seen == count:
            return


def _again(farm: Farm, found: list[Image], *, alone: bool) -> list[Image]:
    """The same pictures from a new job: of the same render, or of one that has only the one."""
    first = found[0]
    told = {name: value for name, value in first.spec.items() if value is not None}
    request: dict[str, Any] = {
        name: value for name, value in told.items() if name in RenderRequest.model_fields
    }
    if alone:  # picture i of a render has the seed ``seed + i``
        request |= {"seed": first.seed, "num_images": 1}
    request.pop("adapter_scale", None)  # the adapters' own scales have it already
    if adapters := request.pop("adapters", None):
        request["adapters"] = [
            {"adapter": one["sha256"], "scale": one["scale"]} for one in adapters
        ]
    options: dict[str, Any] = {"name": f"rerender {first.render}", "keep": KEEP}
    made = sorted(farm.submit_many([request], **options).images(), key=lambda one: one.image)
    return made if alone else [made[one.image] for one in found]


def _tell(known: Picture, fresh: Picture, equal: bool, as_json: bool) -> None:
    if as_json:
        say_json({
            "render": known.render, "index": known.image, "same": equal,
            "tokens_sha256": known.tokens_sha256, "again": fresh.tokens_sha256,
            "numerics": getattr(known, "numerics", None),
            "numerics_again": getattr(fresh, "numerics", None), "error": fresh.error,
        })  # fmt: skip
        return
    name, hashes = f"{known.render}-{known.image}", str(known.tokens_sha256)
    say(one_line(f"{name} {'same' if equal else 'differs'} tokens {hashes}"))
    if fresh.error is not None:
        say_error(one_line(f"{name}: it failed this time: {fresh.error.get('message')}"))
    elif not equal:
        classes = f"{getattr(known, 'numerics', '?')} then, {getattr(fresh, 'numerics', '?')} now"
        say_error(one_line(f"{name}: now {fresh.tokens_sha256}; numerics class {classes}"))


def _suffix(image: Image) -> str:
    return Path(str(image.file)).suffix
