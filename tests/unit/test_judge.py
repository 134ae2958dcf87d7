"""The judge is right about drawings, and rejects pictures that do not show what was asked."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from random import Random

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tools" / "shapes")]

from judge import NAMES, judge, matches, objects, repeated, saturation  # noqa: E402
from scene import (  # noqa: E402
    COLOURS,
    PLACES,
    SHAPES,
    SIZES,
    Scene,
    combinations,
    draw,
    pair,
    pattern,
    place_thing,
    single,
)


def scene_of(shape: str, colour: str, background: str, size: str, place: str) -> Scene:
    return Scene(background, (place_thing(shape, colour, size, place),))


@pytest.fixture
def scene() -> Scene:
    return scene_of("circle", "red", "blue", "large", "left")


def test_the_judge_knows_the_colours_of_the_world() -> None:
    assert set(NAMES) == set(COLOURS)


@pytest.mark.parametrize("side", [64, 128])
@pytest.mark.parametrize("shape", SHAPES)
def test_every_drawing_is_read_right(shape: str, side: int) -> None:
    rng = Random(shape)
    for _ in range(20):
        background, colour = rng.sample(list(COLOURS), 2)
        drawn = single(rng, shape, colour, background)
        assert all(matches(judge(draw(drawn, side)), drawn)), drawn


def test_held_out_drawings_are_read_right() -> None:
    rng = Random(0)
    for combination in combinations(kept_out=True):
        drawn = single(rng, *combination)
        assert all(matches(judge(draw(drawn, 64)), drawn)), drawn


@pytest.mark.parametrize("side", [64, 128])
def test_both_objects_of_a_pair_are_found(side: int) -> None:
    rng = Random(1)
    for _ in range(20):
        drawn = pair(rng)
        found = objects(draw(drawn, side))
        assert len(found) == 2
        for thing in drawn.things:
            assert any(all(matches(verdict, drawn, thing)) for verdict in found), drawn


@pytest.mark.parametrize("background", [c for c in COLOURS if c not in ("red", "blue")])
def test_a_wrong_background_is_rejected(scene: Scene, background: str) -> None:
    match = matches(judge(draw(replace(scene, background=background), 64)), scene)
    assert match == (False, True, True, True, True)


@pytest.mark.parametrize("colour", [c for c in COLOURS if c not in ("red", "blue")])
def test_a_wrong_colour_is_rejected(scene: Scene, colour: str) -> None:
    wrong = scene_of("circle", colour, "blue", "large", "left")
    assert matches(judge(draw(wrong, 64)), scene) == (True, False, True, True, True)


@pytest.mark.parametrize("shape", [s for s in SHAPES if s != "circle"])
@pytest.mark.parametrize("size", SIZES)
def test_a_wrong_shape_is_rejected(shape: str, size: str) -> None:
    asked = scene_of("circle", "red", "blue", size, "left")
    drawn = scene_of(shape, "red", "blue", size, "left")
    assert not matches(judge(draw(drawn, 64)), asked).shape


@pytest.mark.parametrize("place", [p for p in PLACES if p != "left"])
def test_a_wrong_position_is_rejected(scene: Scene, place: str) -> None:
    wrong = scene_of("circle", "red", "blue", "large", place)
    assert matches(judge(draw(wrong, 64)), scene) == (True, True, True, False, True)


@pytest.mark.parametrize("size", [s for s in SIZES if s != "large"])
def test_a_wrong_size_is_rejected(scene: Scene, size: str) -> None:
    wrong = scene_of("circle", "red", "blue", size, "left")
    assert matches(judge(draw(wrong, 64)), scene) == (True, True, True, True, False)


def test_swapped_colours_are_rejected(scene: Scene) -> None:
    match = matches(judge(draw(scene_of("circle", "blue", "red", "large", "left"), 64)), scene)
    assert not match.background
    assert not match.colour


def test_an_empty_picture_has_no_object(scene: Scene) -> None:
    empty = draw(replace(scene, things=()), 64)
    assert judge(empty) == ("blue", None, None, None, None)


def test_noise_is_no_object(scene: Scene) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    match = matches(judge(noise), scene)
    assert not match.shape


def test_half_a_shape_is_not_the_shape(scene: Scene) -> None:
    picture = draw(scene_of("circle", "red", "blue", "large", "centre"), 64)
    picture[:, 32:] = draw(replace(scene, things=()), 64)[:, 32:]
    assert judge(picture).shape is None


def test_specks_are_not_objects(scene: Scene) -> None:
    picture = draw(scene, 64)
    picture[60:62, 60:62] = COLOURS["yellow"]
    assert len(objects(picture)) == 1


def test_a_pale_drawing_is_less_vivid(scene: Scene) -> None:
    assert saturation(draw(replace(scene, score=3), 64)) < 0.7 * saturation(draw(scene, 64))


@pytest.mark.parametrize("side", [64, 128])
def test_things_in_all_four_quarters_are_told_from_one_or_two(side: int) -> None:
    for shape in SHAPES:
        for size in SIZES:
            for place in PLACES:
                drawn = scene_of(shape, "red", "blue", size, place)
                assert not repeated(draw(drawn, side))
                assert repeated(draw(pattern(drawn), side))
    rng = Random("pairs")
    two = [pair(rng) for _ in range(20)]
    assert not any(repeated(draw(scene, side)) for scene in two)
    assert all(repeated(draw(pattern(scene), side)) for scene in two)
