"""One whole farm for the tests of the group ``farm``, started by its command.

It lies in an odd folder, is asked through an environment with a proxy that does not answer, and is
told of a GPU that is not there.
"""

import json
from collections.abc import Iterator

import pytest
from running_farm import RunningFarm

from farm.local.ports import free_port
from farm_workers.testing.tiny import make_tiny

ODD = {
    "http_proxy": "http://127.0.0.1:1",
    "https_proxy": "http://127.0.0.1:1",
    "CUDA_VISIBLE_DEVICES": "7",
}


@pytest.fixture(scope="package")
def farm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningFarm]:
    data = tmp_path_factory.mktemp("farm") / "é a#b?c%20"
    data.mkdir(mode=0o755)
    running = RunningFarm(data, f"http://127.0.0.1:{free_port()}", ODD)
    try:
        make_tiny(data / "tiny", num_hidden_layers=1)
        served = [data / "tiny", "shapes-64", "shapes-128"]
        options = [word for name in served for word in ("--checkpoint", name)]
        port = running.url.rsplit(":", 1)[1]
        told = running.run("up", "--port", port, *options, "--detach").stderr
        # The mark of readiness is written after the lines that tell of it.
        assert f"ready: {running.url} with " in told
        assert "try: farm submit" in told
        yield running
    finally:
        running.run("down")
        assert running.processes() == []
    kept = running.run("doctor", "--rebuild", "--json")
    assert json.loads(kept.stdout)["done"] > 0
