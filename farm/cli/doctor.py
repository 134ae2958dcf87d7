"""``farm doctor``."""

import os
from pathlib import Path
from typing import Annotated

import typer

from farm.cli.output import one_line, say, say_json


def doctor(
    data: Annotated[
        Path | None, typer.Option("--data", help="The farm's data directory.", show_default=False)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> int:
    """Check what the farm stands on: its gateway, server, store, Ray, checkpoints, disk and clock.
    REDIS_URL, FARM_STORE, RAY_ADDRESS and FARM_CHECKPOINTS name what farm up does not run itself.
    The exit code is 1 if a check fails."""
    from farm.checkpoints.inspect import built_in
    from farm.local.doctor import Health, Patient, examine
    from farm.local.valkey import ServerProcess
    from farm.paths import data_dir
    from farm_client.address import find_address

    folder = (data or data_dir()).expanduser().absolute()
    named = os.environ.get("FARM_CHECKPOINTS", "").split(",")
    tiny = folder / "checkpoints" / "tiny"
    kept = [*built_in().values(), *([tiny] if tiny.exists() else [])]
    patient = Patient(
        data=folder,
        url=find_address().url,
        redis_url=os.environ.get("REDIS_URL") or ServerProcess(folder / "valkey").url,
        store=os.environ.get("FARM_STORE") or str(folder / "store"),
        ray_address=os.environ.get("RAY_ADDRESS", ""),
        checkpoints=[name for name in named if name] or [str(path) for path in kept],
    )
    failed = False
    for found in examine(patient):
        failed |= found.health is Health.FAIL
        if as_json:
            say_json(found._asdict())
        else:
            hint = f" ({found.hint})" if found.hint else ""
            say(one_line(f"{found.health:<4}  {found.check:<11}  {found.told}{hint}"))
    return 1 if failed else 0
