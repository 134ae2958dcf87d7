"""``farm score``."""

import io
import itertools
from collections.abc import Iterable, Iterator, Set
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated

import typer

from farm.cli.arguments import JobId, Parallel, SummaryAsJson
from farm.cli.output import counter, go_on_with, pictures, say_error, say_json
from farm.errors import InvalidInput
from farm_client import Farm, Job
from farm_client.fetch import PARALLEL
from farm_client.models import Picture
from farm_client.runs import map_ahead, read_files, runs
from farm_client.scores import Score, add_scores, read_scores
from farm_client.sync import iterate

if TYPE_CHECKING:
    from farm.scoring.scorer import Scorer

BLOCK = 250  # pictures that are scored and kept together
TOGETHER = 16  # pictures given to a scorer at a time


def score(
    job: JobId,
    with_: Annotated[
        str,
        typer.Option(
            "--with",
            metavar="NAMES",
            help="confidence, pdq, nsfw, or those of installed packages.",
            show_default=False,
        ),
    ],
    parallel: Parallel = PARALLEL,
    as_json: SummaryAsJson = False,
) -> None:
    """Add columns to a job's pictures for farm export: --where and --dedup read them. Pictures that
    were scored already are left out, so a call that was interrupted goes on when it is repeated."""
    from farm.scoring.scorer import MANIFEST, open_scorer

    names = list(dict.fromkeys(name.strip() for name in with_.split(",")))
    if MANIFEST in names:
        say_error(f"{MANIFEST}: every manifest has it")
    scorers = {name: open_scorer(name) for name in names if name != MANIFEST}
    found = Farm().job(job)
    found.status()
    go_on_with(["farm", "score", job, "--with", with_, "--parallel", str(parallel)])
    counts = _score(found, scorers, parallel) if scorers else {}
    if as_json:
        say_json({"job": found.id, "scored": counts})
    for name, count in counts.items():
        say_error(f"{name}: {pictures(count)} scored")


def _score(job: Job, scorers: "dict[str, Scorer]", parallel: int) -> dict[str, int]:
    from farm.export.scored import scored

    counts = dict.fromkeys(scorers, 0)
    show = counter()

    def missing(picture: Picture) -> Set[str]:
        return scorers.keys() - known.of(*_key(picture)).keys()

    asked = (
        run for page in iterate(job.pages()) for run in runs(page, filter(missing, page.pictures))
    )
    with (
        TemporaryDirectory() as folder,
        scored(Path(folder)) as known,
        ThreadPoolExecutor(parallel) as pool,
    ):
        known.add((*one[:3], {name: True}) for name, one in read_scores(job))
        read = map_ahead(pool, partial(read_files, job.connection), asked, parallel)
        files = itertools.chain.from_iterable(read)
        while block := list(islice(files, BLOCK)):
            left = [(_key(picture), file, missing(picture)) for picture, file in block]
            for name, scorer in scorers.items():
                wanted = {key: file for key, file, names in left if name in names}
                if wanted:
                    add_scores(job, name, list(_scores(scorer, wanted.items())))
                counts[name] += len(wanted)
            if show is not None:
                show(max(counts.values()))
    return counts


def _key(picture: Picture) -> tuple[int, int, str]:
    return picture.render, picture.image, str(picture.sha256)


def _scores(
    scorer: "Scorer", files: Iterable[tuple[tuple[int, int, str], bytes]]
) -> Iterator[Score]:
    from PIL import Image as Pillow
    from PIL import UnidentifiedImageError

    waiting = iter(files)
    while some := list(islice(waiting, TOGETHER)):
        try:
            opened = [Pillow.open(io.BytesIO(data)).convert("RGB") for _, data in some]
        except UnidentifiedImageError:
            raise InvalidInput(
                "the job stores tokens, not pictures",
                field="job",
                hint="farm export it --as webdataset, or render it to another sink",
            ) from None
        for (key, _), values in zip(some, scorer.score(opened), strict=True):
            yield Score(*key, values)
