"""The farm's queue: pieces of 200 tasks, leases of up to 200, completed in one call."""

import secrets
import sys
import time

from noop import BULK, REDIS, bulks, ran, submit_when_told

from farm.job import JobOptions, Receipt, TaskDraft, job_id
from farm.queue import JobHeader, Queue, connect
from farm.spec import Lane, Mode

CHECKPOINT = "amused/amused-256@r1"
LANE = Lane(CHECKPOINT, Mode.TEXT2IMG, 256, 256)
LEASE_MS = 60_000
queue = Queue(connect(REDIS))


def submit(numbers: range) -> None:
    job = queue.open(JobHeader(job_id(), "ann", JobOptions(), secrets.token_hex(32))).job
    count = 0
    for count, some in enumerate(bulks(numbers), 1):
        drafts = [TaskDraft(number, LANE, 1, 12) for number in some]
        queue.append(job, count - 1, f"{count:064x}", drafts)
    queue.close(job, count)


def work() -> None:
    session = secrets.token_hex(16)
    queue.register(session, "compare", [CHECKPOINT], {})
    while True:
        leases = queue.lease(session, None, BULK, LEASE_MS, BULK)
        if not leases:
            time.sleep(0.005)
            continue
        done = [
            (
                lease,
                Receipt(
                    done=lease.pictures,
                    failed=0,
                    size=1000,
                    part=f"{lease.key}.parquet",
                    part_sha256="0" * 64,
                    numerics="compare",
                ),
            )
            for lease in leases
        ]
        queue.complete_all(session, done)
        ran(sum(not lease.finalise for lease in leases))


if sys.argv[1] == "submit":
    submit_when_told(int(sys.argv[2]), submit)
else:
    work()
