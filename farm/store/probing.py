"""Trying out whether a store really lets one of several writers win."""

import secrets
import threading
from concurrent.futures import ThreadPoolExecutor

from farm.errors import StoreError
from farm.store.protocol import Store


def probe(store: Store, writers: int) -> None:
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
        if len(winners) != 1 or kept != f"writer {winners[0]}".encode() or late:
            raise StoreError(
                f"{store.url} does not write objects only once: "
                f"{len(winners) + late} of {writers + 1} writers of one key were told they won",
                hint="use a store that honours If-None-Match, such as AWS S3, Ceph or MinIO, "
                "or a local folder",
            )
    finally:
        store.delete(key)
