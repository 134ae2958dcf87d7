"""A farm that a test started, and its command line."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from farm.local.supervisor import members

FARM = [sys.executable, "-m", "farm.cli"]


class RunningFarm(NamedTuple):
    data: Path
    url: str
    surroundings: Mapping[str, str] = {}  # of its commands, beside this process's environment

    @property
    def environment(self) -> dict[str, str]:
        return {**os.environ, **self.surroundings, "FARM_DATA": str(self.data)}

    def run(self, *arguments: object, check: bool = True) -> "subprocess.CompletedProcess[str]":
        """One command of the CLI."""
        ended = subprocess.run(
            [*FARM, *map(str, arguments)],
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert not check or ended.returncode == 0, ended.stderr
        return ended

    def run_in_turn(self, *commands: Sequence[object]) -> None:
        """Several commands in one process, which loads torch once."""
        program = (
            "import json, sys; from farm.cli.app import run;"
            "sys.exit(max(run(one) for one in json.loads(sys.argv[1])))"
        )
        words = json.dumps([[str(word) for word in command] for command in commands])
        ended = subprocess.run(
            [sys.executable, "-c", program, words],
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert ended.returncode == 0, ended.stderr

    def submit(self, *arguments: object) -> str:
        return self.run("submit", *arguments).stdout.strip()

    def fetch(self, job: str, folder: Path) -> list[dict[str, Any]]:
        """The manifest's lines, when the job has ended."""
        self.run("fetch", job, "-o", folder)
        return manifest(folder)

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
