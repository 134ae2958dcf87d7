"""``farm stats``."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from farm.cli.arguments import AsJson
from farm.cli.output import counted, counter, one_line, say, say_json
from farm.errors import InvalidInput
from farm_client import Farm, Job

CONFIDENCE = {"p10": "conf p10", "median": "conf p50", "p90": "conf p90"}  # and their titles
HEAD = ("pictures", "failed", *CONFIDENCE.values())


def stats(
    what: Annotated[str, typer.Argument(metavar="JOB|FOLDER", show_default=False)],
    as_json: AsJson = False,
) -> None:
    """Show how many pictures a job has, how many failed and how confident they are, by checkpoint,
    mode and size; of a folder that farm export wrote, also the tokens' entropy and duplicates."""
    told = _of_folder(Path(what)) if Path(what).is_dir() else _of_job(Farm().job(what))
    if as_json:
        say_json(told)
        return
    say(_columns(HEAD) + "  checkpoint, mode, size")
    for lane, counts in told["lanes"].items():
        say(one_line(_line(lane, counts)))
    if told["shards"]:
        say(_shards(told["shards"]))


def _of_job(job: Job) -> dict[str, Any]:
    from farm.export.fetched import row_of
    from farm.export.statistics import Statistics

    job.status()
    found, show = Statistics(), counter()
    for number, image in enumerate(job.images(follow=False), 1):
        found.add(row_of(image.line()))
        if show is not None:
            show(number)
    return found.told()


def _of_folder(folder: Path) -> dict[str, Any]:
    from farm.export.statistics import STATISTICS

    try:
        told: dict[str, Any] = json.loads((folder / STATISTICS).read_bytes())
        return {"lanes": told["lanes"], "shards": told["shards"]}
    except (OSError, ValueError, LookupError, TypeError):
        raise InvalidInput(
            f"{folder} has no {STATISTICS} that farm export wrote",
            field="FOLDER",
            hint="farm export JOB -o FOLDER --as parquet",
        ) from None


def _line(lane: str, counts: Mapping[str, Any]) -> str:
    confidence = [counts["confidence"][name] for name in CONFIDENCE]
    numbers = [f"{counts['pictures']:,}", f"{counts['failed']:,}"]
    numbers += ["-" if one is None else f"{one:.3f}" for one in confidence]
    return f"{_columns(numbers)}  {lane}"


def _columns(texts: Sequence[str]) -> str:
    return "".join(f"{text:>11}" for text in texts)


def _shards(shards: Sequence[Mapping[str, Any]]) -> str:
    entropies = [one["token_entropy"] for one in shards]
    exact, near = (sum(one[f"{kind}_duplicates"] for one in shards) for kind in ("exact", "near"))
    count = counted(len(shards), "shard")
    return (
        f"{count}, token entropy {min(entropies):.2f} to {max(entropies):.2f} bits; "
        f"duplicates within a shard: {exact:,} exact, {near:,} near"
    )
