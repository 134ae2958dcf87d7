"""Dramatiq: it acknowledges when a task is done; threads, so that waits for the disk overlap."""

import sys

import dramatiq
from dramatiq.brokers.redis import RedisBroker
from noop import REDIS, submit_when_told, work

broker = RedisBroker(url=REDIS)
dramatiq.set_broker(broker)
noop = dramatiq.actor(work, queue_name="compare")


def submit(numbers: range) -> None:
    for number in numbers:
        noop.send(number)


if __name__ == "__main__" and sys.argv[1] == "submit":
    submit_when_told(int(sys.argv[2]), submit)
