"""Tests that read what jobs have made: those of a file share one worker, each has its own jobs."""

from collections.abc import Iterator

import pytest
from harness import Gateway, emptied

from workers import Workers, real_workers


@pytest.fixture(scope="module")
def gateway(shared: Gateway) -> Gateway:
    """An open farm that was empty before the first of these tests."""
    return emptied(shared)


@pytest.fixture(scope="module")
def workers(
    gateway: Gateway, redis_url: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Workers]:
    """One worker, which is running."""
    folder = tmp_path_factory.mktemp("reading")
    with real_workers(gateway, redis_url, folder, lease_ms=60_000) as workers:
        workers.start()
        yield workers
