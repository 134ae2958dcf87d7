"""A farm that a test started, and its command line."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from farm.local.supervisor import members

FARM = [sys.executable, "-m", "farm.cli"]


class RunningFarm(NamedTuple):
    data: Path
    url: str

    @property
    def environment(self) -> dict[str, str]:
        return {**os.environ, "FARM_DATA": str(self.data)}

    def run(self, *arguments: object, check: bool = True) -> "subprocess.CompletedProcess[str]":
        """One command of the CLI."""
        ended = subprocess.run(
            [*FARM, *map(str, arguments)],
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=240,
        )
        assert not check or ended.returncode == 0, ended.stderr
        return ended

    def submit(self, *arguments: object) -> str:
        return self.run("submit", *arguments).stdout.strip()

    def fetch(self, job: str, folder: Path) -> list[dict[str, Any]]:
        """The manifest's lines, when the job has ended."""
        self.run("fetch", job, "-o", folder)
        return manifest(folder)

    def state(self, job: str) -> str:
        return str(json.loads(self.run("status", job, "--json").stdout)["state"])

    def pid(self, name: str) -> int:
        return int((self.data / "run" / f"{name}.pid").read_text())

    def processes(self) -> list[psutil.Process]:
        """Everything that belongs to it."""
        return members(self.data)


def manifest(folder: Path) -> list[dict[str, Any]]:
    return [
        json.loads(line)
        for line in (folder / "manifest.jsonl").read_text(encoding="utf-8").splitlines()
    ]
