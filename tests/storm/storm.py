"""A farm in a storm: everything in it is killed, again and again, while jobs come in.

python tests/storm/storm.py --jobs 20000 --kills 120 --server-kills 10
python tests/storm/storm.py --ray --jobs 1655 --kills 20 --server-kills 2

Real processes: a Valkey server, a gateway, schedulers, two workers with a tiny checkpoint, their
publishers and crash reporters, and a client that submits. In the end a checker that knows nothing
of the farm's insides compares what was acknowledged with what is stored and what the API says.
"""

import argparse
import json
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).parent))

from checker import check
from environments import LEASE_MS, Environment, ProcessEnvironment, RayEnvironment, until
from processes import Member, pause, send
from submitter import acknowledged
from workload import FAULTS, planned_job

from farm.errors import FarmError
from farm.queue import Queue, connect
from farm_client import Farm

STALLED_SECONDS = 15.0  # without a row that starts, then the next kill comes anyway
LEAST_GAP_SECONDS = 0.5
PATIENCE_SECONDS = 300.0  # without a row that starts and nothing left to kill
RESTART_SECONDS = 180.0  # in which what was killed must be there again
BARELY = 1.5  # seconds: a pause that no lease notices
VICTIMS = {
    "worker": 9,
    "publisher": 4,
    "gateway": 3,
    "scheduler": 3,
    "crash_reporter": 1,
    "submitter": 1,
}
PAUSES = {"worker": 3, "publisher": 1, "gateway": 1, "scheduler": 1}


class Outcome(NamedTuple):
    """What a storm came to."""

    jobs: int
    pictures: int
    kills: dict[str, int]
    pauses: dict[str, int]
    seconds: float
    started: int  # rows that an engine began, those of crashing rows included
    extra: float  # rows begun beyond one for each picture, as a share of the pictures
    problems: list[str]


class Storm:
    """
    Args:
        environment: the farm.
        folder: for what the storm keeps.
        jobs: that come in.
        kills: SIGKILLs, of which ``server_kills`` hit the server.
        seed: of who is killed when.
    """

    def __init__(
        self,
        environment: Environment,
        folder: Path,
        jobs: int,
        kills: int,
        server_kills: int,
        seed: int,
    ) -> None:
        self._environment = environment
        self._jobs = jobs
        self._random = Random(seed)
        at = set(self._random.sample(range(kills), server_kills))
        self._plan = [
            "server" if number in at else self._choose({**VICTIMS, **environment.victims})
            for number in range(kills)
        ]
        self._kills: Counter[str] = Counter()
        self._pauses: Counter[str] = Counter()
        self._pictures = sum(planned_job(number, jobs).pictures for number in range(jobs))
        self._acknowledged = folder / "acknowledged"
        self._trace = folder / "trace"
        self._trace.touch()

    def run(self, tell: Callable[[str], None]) -> Outcome:
        program = Path(__file__).with_name("submitter.py")
        command = [sys.executable, str(program), str(self._jobs), str(self._acknowledged)]
        try:
            self._environment.start(Member("submitter", command, once=True))
            began = time.monotonic()
            self._rage(tell)
            self._settle()
            seconds = time.monotonic() - began
            tell(f"all jobs have ended after {seconds:.0f} s; looking at what they left")
            problems = self._problems()
        finally:
            self._environment.close()
        return Outcome(
            self._jobs,
            self._pictures,
            dict(self._kills),
            dict(self._pauses),
            round(seconds, 1),
            self._started(),
            round(self._started() / self._pictures - 1, 4),
            problems,
        )

    def _rage(self, tell: Callable[[str], None]) -> None:
        """Kill as the work goes on: the kills lie between equally many pictures."""
        for number, victim in enumerate(self._plan):
            due = self._pictures * (number + 1) // (len(self._plan) + 1)
            self._await(lambda: self._started() >= due, STALLED_SECONDS)  # noqa: B023
            time.sleep(LEAST_GAP_SECONDS * (0.5 + self._random.random()))
            self._kill(victim)
            if number % 6 == 5:
                self._pause()
            if number % 10 == 9:
                tell(f"{number + 1} kills, {self._started()} of {self._pictures} rows started")

    def _kill(self, victim: str) -> None:
        if victim == "server":
            self._environment.kill_server()
        else:
            if victim == "submitter" and self._environment.submitted():
                victim = "worker"  # the client has finished
            until(
                lambda: self._environment.pids(victim), RESTART_SECONDS, f"the {victim} is not back"
            )
            pids = self._environment.pids(victim)
            if not pids or not send(self._random.choice(pids), signal.SIGKILL):
                self._kill(victim)  # it ended of itself between the two
                return
        self._kills[victim] += 1

    def _pause(self) -> None:
        """SIGSTOP: some are away for longer than their leases last, some are not noticed."""
        victim = self._choose(PAUSES)
        if pids := self._environment.pids(victim):
            pause(self._random.choice(pids), self._random.choice([BARELY, LEASE_MS / 1000 + 3]))
            self._pauses[victim] += 1

    def _choose(self, weights: dict[str, int]) -> str:
        return self._random.choices(list(weights), list(weights.values()))[0]

    def _settle(self) -> None:
        """Until every job that was acknowledged has ended."""
        with Farm(self._environment.url) as farm:

            def ended() -> bool:
                if not self._environment.submitted():
                    return False
                try:
                    return all(status.ended for status in farm.jobs())
                except FarmError:
                    return False

            self._await(ended, PATIENCE_SECONDS)

    def _await(self, condition: Callable[[], bool], seconds: float) -> None:
        """Until it holds, or no row has started for so long."""
        seen, since = self._started(), time.monotonic()
        while not condition() and time.monotonic() - since < seconds:
            time.sleep(0.2)
            if self._started() != seen:
                seen, since = self._started(), time.monotonic()

    def _started(self) -> int:
        return self._trace.read_bytes().count(b"\n")

    def _problems(self) -> list[str]:
        queue = Queue(connect(self._environment.redis_url))
        problems = [f"recount: {line}" for line in queue.check(repair=False)]
        with Farm(self._environment.url) as farm:
            known = acknowledged(self._acknowledged)
            return problems + check(farm, self._environment.store, known, self._jobs)


def main() -> int:
    options = argparse.ArgumentParser(description="Kill everything in a farm, and check it.")
    options.add_argument("--jobs", type=int, default=20_000)
    options.add_argument("--kills", type=int, default=120)
    options.add_argument("--server-kills", type=int, default=10)
    options.add_argument("--ray", action="store_true", help="a farm as farm up makes it")
    options.add_argument("--seed", type=int, default=None)
    options.add_argument("--keep", type=Path, help="a new folder that stays, with the logs")
    given = options.parse_args()
    seed = given.seed if given.seed is not None else int(time.time())

    def tell(line: str) -> None:
        print(line, flush=True)

    # On SIGTERM too, what it started must end.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    tell(f"seed {seed}")
    with tempfile.TemporaryDirectory(prefix="storm-") as made:
        folder = (given.keep or Path(made)).absolute()
        folder.mkdir(parents=True, exist_ok=True)
        environment = (RayEnvironment if given.ray else ProcessEnvironment)(folder, FAULTS)
        storm = Storm(environment, folder, given.jobs, given.kills, given.server_kills, seed)
        outcome = storm.run(tell)
    print(json.dumps(outcome._asdict(), indent=1))
    return 1 if outcome.problems else 0


if __name__ == "__main__":
    sys.exit(main())
