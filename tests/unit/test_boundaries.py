"""What must start light, starts light: proven in processes of their own."""

import subprocess
import sys

import pytest

HEAVY = (
    "torch", "diffusers", "transformers", "ray", "redis", "boto3", "botocore", "fastapi",
    "uvicorn", "numpy", "PIL", "pyarrow", "pydantic_settings",
)  # fmt: skip


@pytest.mark.parametrize(
    "code",
    [
        "import farm.spec, farm.job, farm.errors, farm.strict_json",
        "import farm_client; farm_client.Farm('http://127.0.0.1:1')",
        "from farm.cli.app import run; run(['--help'])",
        "import farm.cli.submit, farm.cli.status, farm.cli.watch, farm.cli.fetch, farm.cli.cancel",
        "import farm.cli.inspect, farm.cli.checkpoint",
    ],
)
def test_clients_load_nothing_of_the_servers(code: str) -> None:
    found = _loaded(code)
    assert not found & set(HEAVY)


def test_the_control_plane_loads_neither_torch_nor_ray() -> None:
    found = _loaded("import farm.queue, farm.store, farm.ingest.ingest, farm.gateway.__main__")
    assert not found & {"torch", "diffusers", "transformers", "ray", "boto3"}


def test_sinks_and_exports_load_without_what_only_workers_have() -> None:
    found = _loaded(
        "import farm.sinks.registry, farm.verify.repair, farm.export.export, farm.gateway.__main__"
    )
    assert not found & {"fpng", "farm.formats.encoding", "torch"}


def test_help_is_one_screen_and_loads_no_command() -> None:
    found = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "farm.cli", "--help"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert len(found.stdout.splitlines()) <= 52
    assert "httpx2" not in found.stderr
    assert "farm.cli.submit" not in found.stderr


WITHOUT = """
import sys
class Absent:
    def find_spec(self, name, *_):
        if name.partition(".")[0] in {absent}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Absent())
from farm.cli.app import run
sys.exit(run({arguments}))
"""


@pytest.mark.parametrize(
    "command", ["up", "render x -o out", "export j -o out --as parquet", "worker --name w", "top"]
)
def test_a_command_whose_packages_are_not_installed_names_the_extra(command: str) -> None:
    absent = {*HEAVY, "psutil", "safetensors", "tokenizers", "prometheus_client", "jinja2"}
    script = WITHOUT.format(absent=absent, arguments=command.split())
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert found.returncode == 2
    (line,) = found.stderr.splitlines()
    assert "is needed" in line
    assert 'pip install "amused-farm[' in line


def _loaded(code: str) -> set[str]:
    script = f"{code}\nimport sys\nprint('|', *sys.modules)"
    found = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    return set(found.stdout.rsplit("|", 1)[1].split())
