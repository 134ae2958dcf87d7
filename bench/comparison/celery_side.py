"""Celery: late acknowledgement, since a killed worker must lose nothing; no results kept."""

import sys

from celery import Celery
from noop import REDIS, submit_when_told, work

broker = REDIS.replace("unix://", "redis+socket://").replace("?db", "?virtual_host")
app = Celery("compare", broker=broker)
app.conf.update(
    task_acks_late=True,
    task_ignore_result=True,
    worker_prefetch_multiplier=64,
    worker_enable_remote_control=False,
    task_default_queue="compare",
)
task = app.task(name="compare.noop")(work)


def submit(numbers: range) -> None:
    with app.producer_pool.acquire(block=True) as producer:
        for number in numbers:
            task.apply_async((number,), producer=producer)


if __name__ == "__main__" and sys.argv[1] == "submit":
    submit_when_told(int(sys.argv[2]), submit)
