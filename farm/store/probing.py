"""Trying out whether a store really lets one of several writers win."""

import contextlib
import logging
import secrets
import threading
from concurrent.futures import ThreadPoolExecutor

from farm.errors import StoreError
from farm.store.protocol import Store

log = logging.getLogger(__name__)


class WritesTwice(StoreError):
    """The store lets several writers of one key win."""

    retryable = False


def check_store(store: Store, *, single_writer: bool) -> None:
    """Refuse a store that cannot be used. Refuse one that does not write objects only once, unless
    there is a single writer."""
    try:
        probe(store)
    except WritesTwice as error:
        if not single_writer:
            raise
        log.warning("%s; taken as it is, for a single writer", error.message)


def probe(store: Store, writers: int = 16) -> None:
    """Raise ``StoreError`` unless the store can be used and its ``put`` has one winner."""
    key = f"probe/{secrets.token_hex(16)}"
    start = threading.Barrier(writers)

    def write(number: int) -> bool:
        start.wait()
        return store.put(key, f"writer {number}".encode())

    with ThreadPoolExecutor(writers) as pool:
        calls = [pool.submit(write, number) for number in range(writers)]
    try:
        winners = [number for number, call in enumerate(calls) if call.result()]
        kept = store.get(key)
        late = store.put(key, b"late")
        # Perhaps no writer knows that it won: its reply was lost, and the repeated request failed.
        stored_by = winners or range(writers)
        once = kept in {f"writer {number}".encode() for number in stored_by}
        if len(winners) > 1 or not once or late:
            raise WritesTwice(
                f"{store.url} does not write objects only once: "
                f"{len(winners) + late} of {writers + 1} writers of one key were told they won",
                hint="use a store that honours If-None-Match, such as AWS S3, Ceph or MinIO, "
                "or a local folder; for a farm of one worker, --single-writer takes it as it is",
            )
    except StoreError:
        with contextlib.suppress(StoreError):  # the first error is the one to tell
            store.delete(key)
        raise
    store.delete(key)
