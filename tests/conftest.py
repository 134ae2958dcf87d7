"""What tests of every kind may need: one real Valkey server for the whole run."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from farm.valkey import ServerProcess


@pytest.fixture(scope="session")
def redis_url() -> Iterator[str]:
    """Of a server that a test may empty."""
    with (
        tempfile.TemporaryDirectory(prefix="farm-test-") as folder,
        ServerProcess(Path(folder)).serving() as server,
    ):
        yield server.url
