"""``farm doctor``."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from farm.cli.arguments import AsJson, Data
from farm.cli.output import one_line, say, say_json

if TYPE_CHECKING:
    from farm.local.doctor import Patient


def doctor(
    data: Data = None,
    as_json: AsJson = False,
    rebuild: Annotated[
        bool,
        typer.Option(
            "--rebuild", help="Fill a new queue from the store if the queue's data are lost."
        ),
    ] = False,
) -> int:
    """Check the gateway, Redis, the store, Ray, the checkpoints, the disk and the clock.
    REDIS_URL, FARM_STORE, RAY_ADDRESS and FARM_CHECKPOINTS name what farm up does not run itself.
    The exit code is 1 if a check fails."""
    from farm.local.doctor import Health, examine
    from farm.paths import data_dir

    folder = (data or data_dir()).expanduser().absolute()
    if rebuild:
        return _rebuild(folder, as_json=as_json)
    failed = False
    for found in examine(_patient(folder)):
        failed |= found.health is Health.FAIL
        if as_json:
            say_json(found._asdict())
        else:
            hint = f" ({found.hint})" if found.hint else ""
            say(one_line(f"{found.health:<4}  {found.check:<11}  {found.told}{hint}"))
    return 1 if failed else 0


def _patient(folder: Path) -> "Patient":
    from farm.checkpoints.references import built_in
    from farm.local.doctor import Patient
    from farm.local.valkey import ServerProcess
    from farm_client.address import find_address, known_farm

    named = os.environ.get("FARM_CHECKPOINTS", "").split(",")
    served = known_farm(folder).get("checkpoints", [])
    tiny = folder / "checkpoints" / "tiny"
    kept = [*built_in().values(), *([tiny] if tiny.exists() else [])]
    return Patient(
        data=folder,
        url=find_address(data=folder).url,
        redis_url=os.environ.get("REDIS_URL") or ServerProcess(folder / "valkey").url,
        store=os.environ.get("FARM_STORE") or str(folder / "store"),
        ray_address=os.environ.get("RAY_ADDRESS", ""),
        checkpoints=[name for name in named if name] or served or [str(path) for path in kept],
    )


def _rebuild(folder: Path, *, as_json: bool) -> int:
    from farm.cli.up import lock
    from farm.local.rebuild import rebuild_at, rebuild_embedded, told
    from farm.local.supervisor import sweep
    from farm.store import open_store

    store = open_store(os.environ.get("FARM_STORE") or str(folder / "store"))
    farm = os.environ.get("FARM_NAME", "farm")
    kept = None
    if url := os.environ.get("REDIS_URL"):
        counts = rebuild_at(url, store, farm)
    else:
        with lock(folder):
            sweep(folder)  # of a farm whose supervisor was killed
            counts, kept = rebuild_embedded(folder, store, farm)
    if as_json:
        say_json({**counts, "kept": str(kept) if kept else None})
    else:
        say(told(counts) + (f"; the old files lie in {kept}" if kept else ""))
    return 1 if counts["unreadable"] else 0
