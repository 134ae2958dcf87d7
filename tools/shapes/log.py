"""The training log: one line per event, on the screen and in a file."""

from __future__ import annotations

import time
from pathlib import Path


class Log:
    def __init__(self, file: Path) -> None:
        self.file = file
        self.start = time.monotonic()

    def __call__(self, line: str) -> None:
        stamped = f"{time.monotonic() - self.start:7.0f} s  {line}"
        print(stamped, flush=True)
        with self.file.open("a") as out:
            out.write(stamped + "\n")
