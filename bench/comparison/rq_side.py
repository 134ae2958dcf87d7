"""RQ: enqueue_many through pipelines; SimpleWorkers, which do not fork for every job."""

import sys

import redis
from noop import REDIS, bulks, submit_when_told, work
from rq import Queue, SimpleWorker

queue = Queue("compare", connection=redis.Redis.from_url(REDIS))


def submit(numbers: range) -> None:
    for some in bulks(numbers):
        queue.enqueue_many([Queue.prepare_data(work, (number,), result_ttl=0) for number in some])


if sys.argv[1] == "submit":
    submit_when_told(int(sys.argv[2]), submit)
else:
    SimpleWorker([queue], connection=queue.connection).work(logging_level="ERROR")
