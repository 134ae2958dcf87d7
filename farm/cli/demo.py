"""``farm demo``: start a farm, render in all three modes, leave nothing running."""

import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from farm.cli.output import say, say_error
from farm.errors import FarmError, JobFailed

if TYPE_CHECKING:
    from PIL import Image

    from farm_client import Farm

TEXTS = (
    "a large red circle in the centre on a blue background",
    "a small yellow diamond at the top on a black background",
    "a medium green square on the left on a white background",
    "a medium purple triangle on the right on a yellow background",
    "a large cyan cross in the centre on a red background",
    "a medium white ring at the bottom on a green background",
    "a small blue square on the left and a small red circle on the right on a white background",
    "a large black triangle in the centre on a cyan background",
)
RECOLOURED = "a large green circle in the centre on a yellow background"
RESHAPED = "a large red diamond in the centre on a blue background"
INPAINTED = (
    "a large yellow cross in the centre on a blue background",
    "a large white square in the centre on a blue background",
)
PATTERNED = (
    "a small red diamond in the centre on a white background",
    "a medium yellow circle in the centre on a blue background",
)
SIDE = 64
OVERSAMPLING = 8
SEED = 7


def demo(
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="DIR", help="Where the pictures go.")
    ] = Path("demo-out"),
) -> int:
    """Start a farm, render in all modes and with an adapter, make a sheet of it, and stop."""
    output = output.absolute()
    output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="farm-demo-") as data, _farm(Path(data)) as farm:
        folders = _render(farm, output)
    sheet = _sheet(folders, output)
    say(str(sheet))
    say_error(f"pictures and manifests are in {output}; the farm has ended")
    return 0


def _render(farm: "Farm", output: Path) -> dict[str, Path]:
    from farm.checkpoints.references import built_in_adapters

    picture, mask, pattern = _drawing(), _mask(), built_in_adapters()["pattern"]
    picture.save(output / "input.png")
    mask.save(output / "mask.png")
    jobs = {
        "text2img": farm.submit(TEXTS, seed=SEED, num_images=2, name="demo text2img"),
        "img2img": farm.submit(
            [RECOLOURED, RESHAPED], image=picture, strength=0.9, seed=SEED, name="demo img2img"
        ),
        "inpaint": farm.submit(
            INPAINTED, image=picture, mask_image=mask, seed=SEED, name="demo inpaint"
        ),
        "adapter": farm.submit(
            PATTERNED,
            adapters=[{"adapter": farm.add_adapter("pattern", pattern).name}],
            seed=SEED,
            name="demo adapter",
        ),
    }
    folders = {}
    for name, job in jobs.items():
        say_error(f"{name}: job {job.id}")
        fetched = job.fetch(output / name)
        if fetched.failed:
            raise JobFailed(f"{fetched.failed} pictures of {name} failed", hint=str(output))
        folders[name] = fetched.folder
    return folders


@contextlib.contextmanager
def _farm(data: Path) -> Iterator["Farm"]:
    from farm.local.ports import free_port
    from farm_client import Farm

    farm = [sys.executable, "-P", "-m", "farm.cli"]
    port = free_port(8400)
    environment = {**os.environ, "FARM_DATA": str(data)}
    say_error(f"starting a farm on 127.0.0.1:{port}")
    try:
        up = subprocess.run([*farm, "up", "--port", str(port), "--detach"], env=environment)
        if up.returncode:
            raise FarmError("the farm did not start", hint="its messages are above")
        with Farm(f"http://127.0.0.1:{port}") as client:
            yield client
    finally:
        subprocess.run([*farm, "down"], env=environment, check=True)


def _drawing() -> "Image.Image":
    """A large red circle on blue, as the checkpoint has learnt to draw it."""
    from PIL import Image, ImageDraw

    side = SIDE * OVERSAMPLING
    picture = Image.new("RGB", (side, side), (45, 75, 215))
    ImageDraw.Draw(picture).ellipse(
        [side * edge for edge in (0.28, 0.28, 0.72, 0.72)], (215, 45, 45)
    )
    return picture.resize((SIDE, SIDE), Image.Resampling.LANCZOS)


def _mask() -> "Image.Image":
    """White over the circle and a little beyond, to the next borders of tokens."""
    from PIL import Image, ImageDraw

    mask = Image.new("L", (SIDE, SIDE), 0)
    ImageDraw.Draw(mask).rectangle((16, 16, SIDE - 17, SIDE - 17), 255)
    return mask


def _sheet(folders: dict[str, Path], output: Path) -> Path:
    import json

    from farm.formats.contact_sheet import contact_sheet

    pictures = [(output / "input.png", "input"), (output / "mask.png", "mask")]
    for name, folder in folders.items():
        for line in (folder / "manifest.jsonl").read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            pictures.append((folder / row["file"], f"{name}: {row['spec']['prompt']}"))
    sheet = output / "contact-sheet.png"
    contact_sheet(pictures, columns=6).save(sheet)
    return sheet
