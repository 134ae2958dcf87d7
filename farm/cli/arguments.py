"""Arguments that several commands take."""

from pathlib import Path
from typing import Annotated

import typer

from farm.paths import DATA_HELP

JobId = Annotated[str, typer.Argument(metavar="JOB", show_default=False)]
JobIds = Annotated[list[str], typer.Argument(metavar="JOB…", show_default=False)]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
SummaryAsJson = Annotated[bool, typer.Option("--json", help="Print a summary as JSON.")]
Data = Annotated[
    Path | None, typer.Option("--data", metavar="DIR", help=DATA_HELP, show_default=False)
]
FarmData = Annotated[  # of a farm that runs
    Path | None,
    typer.Option("--data", metavar="DIR", help="The farm's data directory.", show_default=False),
]
Parallel = Annotated[int, typer.Option(min=1, max=64, help="Downloads at a time.")]
Threads = Annotated[int, typer.Option(min=0, help="Of torch; 0: all cores but one.")]
