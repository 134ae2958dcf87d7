"""Runs the queue's scripts and turns their errors into the farm's."""

import re
from collections.abc import Mapping
from typing import Any

import redis
from redis.commands.core import Script

from farm.errors import InvalidInput
from farm.queue.connection import RewriteNeeded, explained
from farm.queue.identity import Identity
from farm.queue.scripts import read_scripts
from farm.queue.server import rewrite

_FARM = re.compile(r"[a-z0-9][a-z0-9-]{0,39}")


class ScriptRunner:
    """The scripts of one farm on one server."""

    def __init__(
        self,
        client: "redis.Redis",
        *,
        farm: str = "farm",
        scripts: Mapping[str, str] | None = None,
    ) -> None:
        if not _FARM.fullmatch(farm):
            raise InvalidInput(
                f"{farm[:60]!r} is not a farm's name",
                field="FARM_NAME",
                hint="lower-case letters, digits and dashes, at most 40",
            )
        self.client = client
        self.farm = farm
        self._prefix = f"{{{farm}}}:"
        Identity(f"{self._prefix}server").guard(client)
        self._scripts: dict[str, Script] = {
            name: client.register_script(source)
            for name, source in (scripts or read_scripts()).items()
        }

    @property
    def _keys(self) -> list[Any]:
        return [self._prefix]

    def _accept(self, name: str, *arguments: Any) -> Any:
        """Run a script that takes new work; a restarted server rewrites its file first."""
        try:
            return self._run(name, *arguments)
        except RewriteNeeded:
            self._run("mark_aof_rewritten", rewrite(self.client))
            return self._run(name, *arguments)

    @explained
    def _run(self, name: str, *arguments: Any) -> Any:
        return self._scripts[name](keys=self._keys, args=arguments)
