"""What a tenant's jobs take up, as the store alone tells it."""

import json
from types import SimpleNamespace
from typing import cast

import pytest

from farm.ingest import usage
from farm.ingest.usage import Usage, report, usage_of
from farm.job import job_id
from farm.queue import Queue
from farm.store import Store, keys

EMPTY = cast(Queue, SimpleNamespace(all_jobs=lambda *_: []))


def put_job(store: Store, tenant: str | None, *, removed: bool = False) -> str:
    """A job of three pictures of 5 bytes, without a record if it belongs to no tenant."""
    job = job_id()
    if tenant is not None:
        mark = keys.removed(job) if removed else keys.header(job)
        store.put(mark, json.dumps({"tenant": tenant}).encode())
    for number in range(3):
        store.put(f"{keys.data(job, 0)}{number}.png", b"bytes")
    return job


def test_jobs_that_the_queue_has_forgotten_are_found_and_no_others_are_listed(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, half_removed = put_job(store, "ann"), put_job(store, "ann", removed=True)
    put_job(store, "bob")
    put_job(store, None)
    store.put(keys.asset("ann", "0" * 64), b"picture")
    store.put(keys.asset("bob", "0" * 64), b"picture")
    listed: list[str] = []
    list_store = store.list

    def note(prefix: str) -> object:
        listed.append(prefix)
        return list_store(prefix)

    monkeypatch.setattr(store, "list", note)
    found = list(usage_of(EMPTY, store, "ann", everything=True))
    own = sorted([whole, half_removed], key=keys.prefix)
    size = len(json.dumps({"tenant": "ann"})) + 15
    assert found == [
        *(Usage(job, 4, size) for job in own),
        Usage("assets", 1, 7),
        Usage("adapters", 0, 0),
    ]
    assert listed == [*map(keys.prefix, own), keys.assets("ann"), keys.adapters("ann")]


def test_a_large_job_gives_signs_of_life_while_its_objects_are_counted(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A list of millions takes longer than clients and proxies wait for a line."""
    monkeypatch.setattr(usage, "BLOCK", 2)
    put_job(store, "ann")
    lines = report(usage_of(EMPTY, store, "ann", everything=True))
    kinds = [kind for line in lines for kind in line]
    assert kinds == ["counting", "counting", "usage", "usage", "usage", "total"]
