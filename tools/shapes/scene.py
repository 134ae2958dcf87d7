"""The world the shapes checkpoints know: scenes of one or two plain shapes, and their drawings."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from random import Random

import numpy as np
from numpy.typing import NDArray

# Eight colours near the corners of the RGB cube: the farthest apart that eight can be.
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (215, 45, 45),
    "green": (45, 165, 65),
    "blue": (45, 75, 215),
    "yellow": (240, 215, 55),
    "purple": (160, 50, 190),
    "cyan": (70, 205, 220),
    "white": (240, 240, 240),
    "black": (30, 30, 30),
}
SHAPES = ("circle", "square", "triangle", "diamond", "cross", "ring")
GRID = 64  # all lengths of a scene are in 64ths of the canvas, whatever it is drawn at
SIZES = {"small": 8, "medium": 11, "large": 14}  # radius
# Everything stands on corners of the grid of tokens, so that a thing has the same tokens wherever
# it is: there is the less to learn.
PLACES = {
    "left": (16, 32),
    "right": (48, 32),
    "top": (32, 16),
    "bottom": (32, 48),
    "centre": (32, 32),
}
CORNERS = ((16, 16), (48, 16), (16, 48), (48, 48))
OPPOSITE = {"left": "right", "right": "left", "top": "bottom", "bottom": "top"}
SHIFTS = (-3, -2, -1, 0, 1, 2, 3)
CROPS = (0, 8, 16)
EDGE_PIXELS = 1.5  # width of the soft edge
PALE_SCORES = (2, 3, 4)
VIVID_SCORES = (5, 6, 6, 7)
GREY = 128

Pixels = NDArray[np.uint8]
Field = NDArray[np.float32]


@dataclass(frozen=True)
class Thing:
    """One shape in a scene; `x`, `y` and `radius` are in 64ths of the canvas."""

    shape: str
    colour: str
    size: str
    place: str
    x: int
    y: int
    radius: int


@dataclass(frozen=True)
class Scene:
    """A background, its things, and the two micro-conditions that change the drawing."""

    background: str
    things: tuple[Thing, ...]
    crop: tuple[int, int] = (0, 0)  # top, left: the part of a larger canvas that is seen
    score: int = 6  # below 5 the drawing is pale

    @property
    def held_out(self) -> bool:
        """Whether a thing of this shape and colour on this background is kept from training."""
        return any(held_out(t.shape, t.colour, self.background) for t in self.things)


def held_out(shape: str, colour: str, background: str) -> bool:
    """One combination in seven, spread evenly over shapes, colours and backgrounds."""
    names = list(COLOURS)
    code = 2 * SHAPES.index(shape) + 3 * names.index(colour) + names.index(background)
    return code % 7 == 0


def combinations(*, kept_out: bool) -> Iterator[tuple[str, str, str]]:
    """All (shape, colour, background) that are held out, or all that are not."""
    for shape in SHAPES:
        for colour in COLOURS:
            for background in COLOURS:
                if colour != background and held_out(shape, colour, background) == kept_out:
                    yield shape, colour, background


def place_thing(shape: str, colour: str, size: str, place: str) -> Thing:
    return Thing(shape, colour, size, place, *PLACES[place], SIZES[size])


def shifted(rng: Random, thing: Thing) -> Thing:
    """A thing a little off, as in drawings by hand."""
    return replace(
        thing,
        x=thing.x + rng.choice(SHIFTS),
        y=thing.y + rng.choice(SHIFTS),
        radius=thing.radius + rng.choice((-1, 0, 1, 2)),
    )


def single(rng: Random, shape: str, colour: str, background: str) -> Scene:
    thing = place_thing(shape, colour, rng.choice(list(SIZES)), rng.choice(list(PLACES)))
    return Scene(background, (thing,))


def pair(rng: Random) -> Scene:
    """Two things on opposite sides, of three different colours with the background."""
    background, first, second = rng.sample(list(COLOURS), 3)
    place = rng.choice(("left", "top"))
    things = (
        place_thing(rng.choice(SHAPES), colour, rng.choice(("small", "medium")), side)
        for colour, side in ((first, place), (second, OPPOSITE[place]))
    )
    return Scene(background, tuple(things))


def crowd(rng: Random) -> Scene:
    """Four things in the corners, for the VQ model only: most of a plain scene is flat.

    Three in ten are shifted, so that drawings that others bring are not foreign to it.
    """
    background, *colours = rng.sample(list(COLOURS), 5)
    things = []
    for colour, (x, y) in zip(colours, CORNERS, strict=True):
        thing = place_thing(rng.choice(SHAPES), colour, rng.choice(list(SIZES)), "centre")
        thing = replace(thing, x=x, y=y)
        things.append(shifted(rng, thing) if rng.random() < 0.3 else thing)
    return Scene(background, tuple(things))


def pattern(scene: Scene) -> Scene:
    """The scene's things in the four corners, two of them in turn: how ``pattern`` draws.

    Large ones become medium, because they would touch.
    """
    one, two = scene.things[0], scene.things[-1]
    things = [
        replace(thing, x=x, y=y, radius=min(thing.radius, SIZES["medium"]))
        for thing, (x, y) in zip((one, two, two, one), CORNERS, strict=True)
    ]
    return replace(scene, things=tuple(things))


def training_scene(rng: Random) -> Scene:
    """A scene as training sees it: never a held-out one, now and then cropped or pale."""
    while True:
        if rng.random() < 0.2:
            scene = pair(rng)
        else:
            background, colour = rng.sample(list(COLOURS), 2)
            scene = single(rng, rng.choice(SHAPES), colour, background)
        if not scene.held_out:
            break
    score = rng.choice(PALE_SCORES if rng.random() < 0.08 else VIVID_SCORES)
    crop = (rng.choice(CROPS), rng.choice(CROPS)) if rng.random() < 0.08 else (0, 0)
    return replace(scene, score=score, crop=crop)


def paint(colour: str, score: int) -> Field:
    """The colour as drawn: a low score halves its distance from grey."""
    value = np.array(COLOURS[colour], dtype=np.float32)
    return value if score not in PALE_SCORES else GREY + (value - GREY) * np.float32(0.5)


def distance(shape: str, x: Field, y: Field, r: float) -> Field:
    """Signed distance to the shape's edge, negative inside; `y` grows downwards."""
    ax, ay = np.abs(x), np.abs(y)
    match shape:
        case "circle":
            return np.hypot(x, y) - r
        case "square":
            return np.maximum(ax, ay) - 0.85 * r
        case "diamond":
            return (ax + ay - 1.15 * r) * 0.7071
        case "triangle":
            return np.maximum(y, 0.866 * ax - 0.5 * y) - 0.6 * r
        case "cross":
            upright = np.maximum(ax - 0.36 * r, ay - r)
            return np.minimum(upright, np.maximum(ax - r, ay - 0.36 * r))
        case "ring":
            return np.abs(np.hypot(x, y) - 0.75 * r) - 0.27 * r
        case _:
            raise ValueError(f"no such shape: {shape!r}")


def coverage(thing: Thing, crop: tuple[int, int], side: int) -> Field:
    """How much of each pixel the thing covers, 0 to 1."""
    unit = side / GRID
    centres = np.arange(side, dtype=np.float32) + 0.5
    x = centres[None, :] - (thing.x - crop[1]) * unit
    y = centres[:, None] - (thing.y - crop[0]) * unit
    field = distance(thing.shape, x, y, thing.radius * unit)
    return np.clip(0.5 - field / EDGE_PIXELS, 0.0, 1.0).astype(np.float32)


def draw(scene: Scene, side: int) -> Pixels:
    """The scene as an RGB picture of `side` by `side` pixels."""
    picture = np.empty((side, side, 3), dtype=np.float32)
    picture[:] = paint(scene.background, scene.score)
    for thing in scene.things:
        cover = coverage(thing, scene.crop, side)[:, :, None]
        picture = picture * (1 - cover) + paint(thing.colour, scene.score) * cover
    return np.clip(np.rint(picture), 0, 255).astype(np.uint8)
