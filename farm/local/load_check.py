"""Whether a farm's checkpoints would load, found out while its first parts start."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from farm.checkpoints.references import built_in
from farm.errors import InvalidCheckpoint

CODE = "error[checkpoint]"


class LoadCheck:
    """A process that builds the models of checkpoints without their weights.

    It takes the seconds that importing torch takes, so it runs beside the start of server and
    gateway; what comes with the workers is known to load.
    """

    def __init__(self, checkpoints: Sequence[str], data: Path) -> None:
        known = {*built_in(), *map(str, built_in().values())}
        command = [sys.executable, "-P", "-m", "farm.cli", "checkpoint", "inspect"]
        self._running = []
        for name in checkpoints:
            if name in known:
                continue
            said = tempfile.TemporaryFile()  # noqa: SIM115  (closed by stop)
            process = subprocess.Popen(
                [*command, name],
                env={**os.environ, "FARM_DATA": str(data)},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=said,
            )
            self._running.append((name, process, said))

    def passed(self) -> bool:
        """Whether it has ended; raises ``InvalidCheckpoint`` as soon as one would not load."""
        for name, process, said in self._running:
            if process.poll():
                said.seek(0)
                lines = said.read().decode(errors="replace").strip().splitlines()
                last = lines[-1] if lines else f"the check ended with status {process.returncode}"
                raise InvalidCheckpoint(
                    f"{Path(name).name}: {last.removeprefix(CODE).removeprefix(': ')}"
                )
        return all(process.poll() is not None for _, process, _ in self._running)

    def stop(self) -> None:
        for _, process, said in self._running:
            process.kill()
            process.wait()
            said.close()
        self._running = []
