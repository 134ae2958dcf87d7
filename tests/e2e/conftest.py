"""One whole farm for the tests of the group ``farm``, started by its command."""

from collections.abc import Iterator

import pytest
from running_farm import RunningFarm

from farm.local.ports import free_port
from farm_workers.testing.tiny import make_tiny


@pytest.fixture(scope="package")
def farm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningFarm]:
    port = free_port()
    running = RunningFarm(tmp_path_factory.mktemp("farm"), f"http://127.0.0.1:{port}")
    try:
        make_tiny(running.data / "tiny")
        served = [running.data / "tiny", "shapes-64", "shapes-128"]
        options = [word for name in served for word in ("--checkpoint", name)]
        running.run("up", "--port", port, *options, "--detach")
        yield running
    finally:
        running.run("down")
        assert running.processes() == []
