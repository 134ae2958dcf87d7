"""The shipped checkpoints through the whole farm: what was asked for is what the picture shows."""

import json
import sys
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from PIL import Image
from running_farm import RunningFarm

from farm_client import Farm

sys.path.append(str(Path(__file__).resolve().parents[2] / "tools" / "shapes"))

from caption import prompt
from judge import Match, judge, matches
from scene import Pixels, Scene, combinations, draw, place_thing, single

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200), pytest.mark.xdist_group("farm")]

SIDES = {"shapes-64": 64, "shapes-128": 128}
both = pytest.mark.parametrize("checkpoint", SIDES)
BEFORE = Scene("blue", (place_thing("circle", "red", "large", "centre"),))


def held_out(count: int) -> list[Scene]:
    """Scenes of combinations that the checkpoints were not trained on."""
    rng = Random("end to end")
    kept = rng.sample(list(combinations(kept_out=True)), count)
    return [single(rng, *combination) for combination in kept]


def submit(
    farm: RunningFarm, folder: Path, checkpoint: str, scenes: list[Scene], *options: object
) -> list[Pixels]:
    """A job of one render a scene, by the command line, to the files that it left."""
    file = folder / "prompts.jsonl"
    lines = [{"prompt": prompt(scene), "seed": at} for at, scene in enumerate(scenes)]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    job = farm.submit(file, "--checkpoint", checkpoint, *options)
    rows = farm.fetch(job, folder / "out")
    assert [row["error"] for row in rows] == [None] * len(scenes)
    return [pixels_of(folder / "out", row) for row in sorted(rows, key=lambda row: row["render"])]


def pixels_of(folder: Path, row: dict[str, Any]) -> Pixels:
    with Image.open(folder / row["file"]) as picture:
        return np.asarray(picture.convert("RGB"))


def verdicts(pictures: list[Pixels], scenes: list[Scene]) -> Match:
    """How many pictures are right in each respect."""
    found = [matches(judge(p), s) for p, s in zip(pictures, scenes, strict=True)]
    return Match(*(sum(column) for column in zip(*found, strict=True)))


def save(pixels: Pixels, file: Path) -> Path:
    Image.fromarray(pixels).save(file)
    return file


@both
def test_text_becomes_the_picture_it_asks_for(
    farm: RunningFarm, tmp_path: Path, checkpoint: str
) -> None:
    scenes = held_out(24)
    right = verdicts(submit(farm, tmp_path, checkpoint, scenes), scenes)
    assert right.background >= 23
    assert right.colour >= 22
    assert right.shape >= 20
    assert right.position >= 21


@both
def test_a_little_strength_keeps_the_object_and_much_follows_the_prompt(
    farm: RunningFarm, tmp_path: Path, checkpoint: str
) -> None:
    drawn = save(draw(BEFORE, SIDES[checkpoint]), tmp_path / "input.png")
    wanted = [
        Scene("yellow", (place_thing("square", "green", "large", "centre"),)),
        Scene("white", (place_thing("cross", "purple", "large", "left"),)),
    ] * 4
    for strength, expected in ((0.2, [BEFORE] * len(wanted)), (0.9, wanted)):
        folder = tmp_path / str(strength)
        folder.mkdir()
        options = ("--image", drawn, "--strength", strength)
        pictures = submit(farm, folder, checkpoint, wanted, *options)
        right = verdicts(pictures, expected)
        assert right.background >= 7, (strength, right)
        assert right.colour >= 6, (strength, right)
        assert right.shape >= 4, (strength, right)


@both
def test_inpainting_replaces_the_object_and_leaves_the_rest(
    farm: RunningFarm, tmp_path: Path, checkpoint: str
) -> None:
    side = SIDES[checkpoint]
    inside = np.zeros((side, side), dtype=bool)
    inside[side // 4 : -side // 4, side // 4 : -side // 4] = True
    drawn = save(draw(BEFORE, side), tmp_path / "input.png")
    mask = save(np.where(inside, np.uint8(255), np.uint8(0)), tmp_path / "mask.png")
    wanted = [Scene("blue", (place_thing("cross", "yellow", "large", "centre"),))] * 6
    pictures = submit(farm, tmp_path, checkpoint, wanted, "--image", drawn, "--mask", mask)
    right = verdicts(pictures, wanted)
    assert right.background == 6
    assert right.colour >= 5
    assert right.shape >= 5
    for other in pictures[1:]:
        assert (other == pictures[0])[~inside].all()
    blurred = np.abs(pictures[0].astype(int) - draw(BEFORE, side))[~inside]
    assert blurred.mean() < 4


def test_a_running_picture_can_be_seen(farm: RunningFarm) -> None:
    """It would take half a minute, and is cancelled when it has been seen twice."""
    steps = []
    with Farm(farm.url) as client:
        job = client.submit("a red circle", checkpoint="shapes-64", num_inference_steps=1000)
        for preview in job.previews():
            assert preview.pil().size == (64, 64)
            steps.append(preview.step)
            if len(steps) == 2:
                job.cancel()
    assert 0 < steps[0] < steps[1] < 1000


def test_a_negative_prompt_turns_pictures_away_from_it(farm: RunningFarm, tmp_path: Path) -> None:
    """Of a prompt that leaves the background open; guidance pulls towards its words instead."""
    shares = {}
    for name, words, options in (
        ("asked", "red background", ()),
        ("open", "a circle", ()),
        ("negative", "a circle", ("--negative-prompt", "red background")),
    ):
        options = (*options, "--checkpoint", "shapes-64", "-n", 16, "--seed", 11)
        folder = tmp_path / name
        job = farm.submit(words, *options)
        rows = farm.fetch(job, folder)
        seen = [judge(pixels_of(folder, row)).background for row in rows]
        shares[name] = seen.count("red")
    assert shares["asked"] >= 15
    assert shares["negative"] <= shares["open"] < shares["asked"]
    assert shares["negative"] <= 1
