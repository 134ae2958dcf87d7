"""What ``farm up`` was asked for, checked before anything starts."""

import shutil
import subprocess
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from farm.addresses import reachable
from farm.checkpoints.inspect import inspect_checkpoint
from farm.checkpoints.references import built_in
from farm.errors import InvalidCheckpoint, InvalidInput
from farm.machine import count_gpus
from farm.queue import check_server, connect
from farm.store import open_store
from farm.store.probing import check_store
from farm.worker_group import groups_file, grown, parse_groups

_NO_RAY = "or unset RAY_ADDRESS: farm up then starts a Ray of its own"


@dataclass(frozen=True)
class Plan:
    """What ``farm up`` was asked for; empty addresses mean that the part is embedded."""

    data: Path
    port: int
    workers: int
    checkpoints: tuple[str, ...]
    store: str = ""
    redis_url: str = ""
    ray_address: str = ""
    single_writer: bool = False
    groups: str = ""  # of workers, instead of a number: farm.worker_group
    min_workers: int | None = None
    max_workers: int | None = None
    least: int = 1  # workers that there always are
    gpus: int = field(default_factory=count_gpus)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def complete(self) -> "Plan":
        """The plan with the machine's defaults filled in, and everything it names looked at: what
        does not answer now is told before anything starts."""
        store = self.store
        if store and "://" not in store:
            store = str(Path(store).absolute())
        self._check_reach(store)
        if self.redis_url:
            check_server(connect(self.redis_url), allow_volatile=True)
        if store:
            check_store(open_store(store, attempts=2), single_writer=self.single_writer)
        names = tuple(
            str(Path(name).absolute()) if Path(name).exists() else name
            for name in self.checkpoints or default_checkpoints(self.data)
        )
        counted = self._counted(names)
        for name in names:
            if "," in name:
                raise InvalidCheckpoint(
                    f"{name} has a comma in its path, by which checkpoints are separated",
                    hint="rename the folder, or give a symbolic link to it",
                )
            inspect_checkpoint(name, self.data)
        return replace(self, checkpoints=names, store=store, **counted)

    def _counted(self, checkpoints: tuple[str, ...]) -> dict[str, Any]:
        """How many workers there may be, and what says so."""
        file = groups_file(self.groups)
        groups = self.groups if file is None else str(file.absolute())
        text = groups or str(self.workers or max(self.gpus, 1))
        there = parse_groups(text, checkpoints, gpus=1 if self.gpus else 0, cpus=1)
        if not (self.min_workers is None and self.max_workers is None):
            there = tuple(grown(group, self.min_workers, self.max_workers) for group in there)
        workers = sum(group.most for group in there)
        if self.single_writer and workers > 1:
            raise InvalidInput(
                f"{workers} workers would write to the store",
                field="--single-writer",
                hint="add --workers 1",
            )
        least = sum(group.least for group in there)
        return {"workers": workers, "groups": text, "least": least}

    def _check_reach(self, store: str) -> None:
        """Workers on other machines need a server and a store that they can reach."""
        if self.ray_address and ":" not in self.ray_address.removeprefix("ray://"):
            raise InvalidInput(
                f"{self.ray_address!r} does not name a Ray cluster",
                field="RAY_ADDRESS",
                hint=f"write the host:port of its head, {_NO_RAY}",
            )
        if self.ray_address and not reachable(self.ray_address.removeprefix("ray://")):
            raise InvalidInput(
                f"nothing listens at {self.ray_address}",
                field="RAY_ADDRESS",
                hint=f"start the cluster (ray start --head), {_NO_RAY}",
            )
        host = self.ray_address.removeprefix("ray://").rsplit(":", 1)[0]
        if host in ("", "127.0.0.1", "localhost"):
            return
        if not self.redis_url or self.redis_url.startswith("unix:"):
            raise InvalidInput(
                f"workers on RAY_ADDRESS={self.ray_address} cannot reach a server inside this "
                "machine",
                field="REDIS_URL",
                hint=f"name one that they can, {_NO_RAY}",
            )
        if not store.startswith("s3:"):
            raise InvalidInput(
                f"workers on {host} cannot write to a folder of this machine",
                field="FARM_STORE",
                hint="s3://bucket/prefix",
            )


def default_checkpoints(data: Path) -> tuple[str, ...]:
    """Those that came with the workers; where none did, one with random weights, made once."""
    if shipped := tuple(built_in()):
        return shipped
    tiny = data / "checkpoints" / "tiny"
    if not tiny.exists():
        made = data / "checkpoints" / "part" / tiny.name  # its name goes into the checkpoint
        shutil.rmtree(made, ignore_errors=True)
        command = [sys.executable, "-P", "-m", "farm.cli", "checkpoint", "make-tiny", str(made)]
        subprocess.run(command, check=True, capture_output=True)
        made.rename(tiny)
    return (str(tiny),)
