"""The queue's append-only file is cut or damaged at random places, and a farm must come back.

python tests/storm/damage.py --rounds 50

Each time the server starts and knows every job as it was, or its refusal or ``farm doctor`` says
what to do, and the rebuilt queue has the counts of the one that was lost.
"""

import argparse
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from random import Random
from typing import Any

from farm.checkpoints.registry import CheckpointRegistry
from farm.errors import FarmError
from farm.ingest.assets import Assets
from farm.ingest.ingest import Ingest
from farm.ingest.ndjson import Entries, Entry
from farm.job import JobOptions
from farm.local.doctor import amiss
from farm.local.rebuild import rebuild_embedded
from farm.local.valkey import DAMAGED, ServerProcess
from farm.queue import Queue, connect
from farm.spec import CheckpointInfo
from farm.store import Store, open_store

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "gateway"))

from fake_worker import BAD_PROMPT, FakeWorker

INFO = CheckpointInfo(
    id="shapes-64", revision="r1", pixel_factor=8, size_multiple=8, native_height=64,
    native_width=64, default_guidance=4.0, vocab_size=72, codebook_size=64, mask_token_id=71,
    text_tokens=77, pooled_dim=32, hidden_dim=32,
)  # fmt: skip


def fill(data: Path) -> dict[str, Any]:
    """A farm of forty jobs: done, failed, cancelled and queued; what its queue counts."""
    store = open_store(str(data / "store"))
    with ServerProcess(data / "valkey").serving() as server:
        queue = Queue(connect(server.url))
        ingest = Ingest(queue, store, CheckpointRegistry([INFO]), Assets(store))
        worker = FakeWorker(queue, store, INFO)

        def submit(number: int) -> str:
            prompts = [f"{number}-{at}" for at in range(1 + number % 4)]
            if number % 7 == 3:
                prompts.append(BAD_PROMPT)
            entries = Entries.of(Entry({"prompt": prompt}) for prompt in prompts)
            return ingest.submit("ann", JobOptions(seed=number), entries).job

        for number in range(25):
            submit(number)
        worker.start()
        while any(not status.ended_at for status in queue.jobs("ann")):
            time.sleep(0.05)
        worker.stop()
        for number in range(25, 40):
            job = submit(number)
            if number % 5 == 0:
                ingest.cancel(job, "ann")
        return counts(queue)


def counts(queue: Queue) -> dict[str, Any]:
    return {
        status.id: (status.state, status.images, status.tasks.total, status.tasks.queued)
        for status in queue.jobs("ann", 200)
    }


def harm(data: Path, random: Random) -> str:
    """Cut one of the queue's files, or change or overwrite some of its bytes."""
    files = sorted((data / "valkey" / "appendonlydir").iterdir())
    file = random.choices(files, [file.stat().st_size for file in files])[0]
    size = file.stat().st_size
    at = random.randrange(size)
    kind = random.choice(["cut", "byte", "block"])
    with file.open("r+b") as out:
        if kind == "cut":
            out.truncate(at)
        else:
            out.seek(at)
            out.write(random.randbytes(1 if kind == "byte" else 512))
    return f"{kind} at {at:,} of {size:,}"


def round_(data: Path, expected: dict[str, Any], store: Store) -> str:
    """What became of a farm whose files were harmed; raises AssertionError if it is not well."""
    try:
        with ServerProcess(data / "valkey").serving() as server:
            queue = Queue(connect(server.url))
            wrong = amiss(queue, store)
            if not wrong:
                assert counts(queue) == expected, "lost in silence"
                return "starts, nothing lost"
        outcome = "starts, doctor tells of it, rebuilt"
    except FarmError as error:
        if error.hint != DAMAGED:
            raise
        outcome = "refused with the way out, rebuilt"
    rebuild_embedded(data, store, "farm")
    with ServerProcess(data / "valkey").serving() as server:
        queue = Queue(connect(server.url))
        assert counts(queue) == expected, "the rebuilt queue counts otherwise"
        assert queue.check(repair=False) == []
    return outcome


def run(folder: Path, rounds: int, seed: int) -> Counter[str]:
    random, outcomes = Random(seed), Counter[str]()
    whole = folder / "whole"
    expected = fill(whole)
    for number in range(rounds):
        data = folder / f"{number}"
        shutil.copytree(whole, data, ignore=lambda _, names: {n for n in names if "sock" in n})
        what = harm(data, random)
        try:
            outcomes[round_(data, expected, open_store(str(data / "store")))] += 1
        except AssertionError as error:
            raise AssertionError(f"round {number}, {what}: {error}") from error
        shutil.rmtree(data)
    return outcomes


def main() -> int:
    options = argparse.ArgumentParser(description="Damage the queue's files, and rebuild it.")
    options.add_argument("--rounds", type=int, default=50)
    options.add_argument("--seed", type=int, default=int(time.time()))
    given = options.parse_args()
    with tempfile.TemporaryDirectory(prefix="damage-") as made:
        print(f"seed {given.seed}")
        for outcome, times in run(Path(made), given.rounds, given.seed).items():
            print(f"{times:4}  {outcome}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
