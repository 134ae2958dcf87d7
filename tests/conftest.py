"""What tests of every kind may need: one real Valkey server for the whole run."""

import functools
import logging
import os
import shutil
import signal
import ssl
import tempfile
from collections.abc import Iterator
from pathlib import Path

import httpcore2
import pytest
from hypothesis import HealthCheck, settings

from farm.local.valkey import ServerProcess

if shutil.which("nvidia-smi") is None:
    # Triton reads it when it is imported, and any test may be the first to do so.
    os.environ["TRITON_INTERPRET"] = "1"
# Test processes share the cores, and threads that spin while they wait for each other slow all of
# them down. Torch reads it when it is imported; the processes under test inherit it.
os.environ.setdefault("OMP_NUM_THREADS", "1")
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell starts what runs in its background so, and the commands under test would inherit it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
# How long an example takes is the machine's affair.
settings.register_profile("unhurried", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("unhurried")


@pytest.fixture(autouse=True)
def logging_as_it_was() -> Iterator[None]:
    """A test may call a process's main function, and all would log to that test's stderr."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    for handler in root.handlers:
        if handler not in handlers:
            handler.close()
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.fixture(scope="session", autouse=True)
def _certificates_read_once() -> Iterator[None]:
    """Not for each of a thousand HTTP clients, which takes 22 ms each time."""
    read = httpcore2.default_ssl_context

    @functools.cache
    def kept(named: tuple[str | None, ...], **options: bool) -> ssl.SSLContext:
        return read(**options)

    def default_ssl_context(**options: bool) -> ssl.SSLContext:
        return kept((os.environ.get("SSL_CERT_FILE"), os.environ.get("SSL_CERT_DIR")), **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(httpcore2, "default_ssl_context", default_ssl_context)
        yield


@pytest.fixture(scope="session")
def redis_url() -> Iterator[str]:
    """Of a server that a test may empty."""
    with (
        tempfile.TemporaryDirectory(prefix="farm-test-") as folder,
        ServerProcess(Path(folder)).serving() as server,
    ):
        yield server.url
