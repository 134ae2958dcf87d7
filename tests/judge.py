"""Says what a picture of a plain shape shows, by counting and measuring alone.

It shares nothing with the code that draws the scenes or makes the pictures: its own table of
colours, its own outlines, its own idea of left and right.
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

PALETTE: dict[str, tuple[int, int, int]] = {
    "red": (220, 40, 40),
    "green": (40, 170, 60),
    "blue": (40, 70, 220),
    "yellow": (240, 220, 50),
    "purple": (160, 50, 190),
    "cyan": (70, 205, 220),
    "white": (245, 245, 245),
    "black": (25, 25, 25),
}
NAMES = tuple(PALETTE)
VALUES = np.array(list(PALETTE.values()), dtype=np.float32)
# Area of each shape when its radius is one, from plane geometry.
AREAS = {
    "circle": 3.14,
    "square": 2.89,
    "diamond": 2.64,
    "triangle": 1.87,
    "cross": 2.36,
    "ring": 2.54,
}
RADII = {"small": 8 / 64, "medium": 11 / 64, "large": 14 / 64}  # share of the picture's side
SMALLEST_AREA = 0.006  # of the picture; less is a speck, not an object
LEAST_OVERLAP = 0.62
ARM = 0.36  # half the width of a cross's arm, for a half length of one
SHARP = 4  # points of an outline per pixel and direction: an arm may end inside a pixel
SMALLEST_QUARTER = 0.05  # of a quarter of the picture: half a small cross
OFF_QUARTER = 0.12  # of a quarter's side; the half of a thing in the picture's middle is 0.2 away
OFF_CENTRE = 0.09  # of the side; the world's places are 0.25 away from the centre

Mask = NDArray[np.bool_]
Pixels = NDArray[np.uint8]


class Verdict(NamedTuple):
    """What the largest object is, None where it cannot be told."""

    background: str
    colour: str | None
    shape: str | None
    position: str | None
    size: str | None


class Match(NamedTuple):
    """Which parts of a verdict agree with a scene."""

    background: bool
    colour: bool
    shape: bool
    position: bool
    size: bool


class _Thing(Protocol):
    @property
    def shape(self) -> str: ...
    @property
    def colour(self) -> str: ...
    @property
    def size(self) -> str: ...
    @property
    def place(self) -> str: ...


class _Scene(Protocol):
    @property
    def background(self) -> str: ...


def judge(pixels: Pixels) -> Verdict:
    """The background and the largest object on it."""
    background = background_of(pixels)
    found = objects(pixels)
    return found[0] if found else Verdict(background, None, None, None, None)


def objects(pixels: Pixels) -> list[Verdict]:
    """A verdict for each object, the largest first."""
    background = background_of(pixels)
    names = nearest(pixels)
    other = names != NAMES.index(background)
    verdicts = []
    for blob in blobs(other):
        core = erode(blob)
        kinds = names[core if core.any() else blob]
        colour = NAMES[np.bincount(kinds, minlength=len(NAMES)).argmax()]
        body = covered(pixels, background, colour) & grow(blob)
        if body.sum() < SMALLEST_AREA * body.size:
            continue
        shape = shape_of(body)
        verdicts.append(
            (int(body.sum()), Verdict(background, colour, shape, place(body), size(body, shape)))
        )
    return [verdict for _, verdict in sorted(verdicts, key=lambda entry: -entry[0])]


def matches(verdict: Verdict, scene: _Scene, thing: _Thing | None = None) -> Match:
    """Compares with a scene's thing: its only one, unless another is named."""
    wanted = thing if thing is not None else scene.things[0]  # type: ignore[attr-defined]
    return Match(
        background=verdict.background == scene.background,
        colour=verdict.colour == wanted.colour,
        shape=verdict.shape == wanted.shape,
        position=verdict.position == wanted.place,
        size=verdict.size == wanted.size,
    )


def nearest(pixels: Pixels) -> NDArray[np.int64]:
    """The palette's index for each pixel."""
    away = pixels[:, :, None, :].astype(np.float32) - VALUES
    return np.square(away).sum(-1).argmin(-1)


def background_of(pixels: Pixels) -> str:
    """The colour that the picture's rim mostly has."""
    names = nearest(pixels)
    wide = max(2, pixels.shape[0] // 32)
    rim = np.ones(names.shape, dtype=bool)
    rim[wide:-wide, wide:-wide] = False
    return NAMES[np.bincount(names[rim], minlength=len(NAMES)).argmax()]


def covered(pixels: Pixels, background: str, colour: str) -> Mask:
    """Pixels nearer to the colour than to the background, along the line between the two."""
    start, end = (VALUES[NAMES.index(name)] for name in (background, colour))
    line = end - start
    if not line.any():
        return np.zeros(pixels.shape[:2], dtype=bool)
    share = (pixels.astype(np.float32) - start) @ line / (line @ line)
    return share > 0.5


def blobs(mask: Mask) -> list[Mask]:
    """The mask's connected parts, those that are no specks."""
    left = mask.copy()
    found = []
    for row, column in np.argwhere(mask):
        if left[row, column]:
            part = flood(left, int(row), int(column))
            if part.sum() >= SMALLEST_AREA * mask.size:
                found.append(part)
    return found


def flood(left: Mask, row: int, column: int) -> Mask:
    """Moves the part around one pixel out of `left`."""
    part = np.zeros_like(left)
    queue = deque([(row, column)])
    left[row, column] = False
    while queue:
        y, x = queue.popleft()
        part[y, x] = True
        for ny, nx in ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)):
            if 0 <= ny < left.shape[0] and 0 <= nx < left.shape[1] and left[ny, nx]:
                left[ny, nx] = False
                queue.append((ny, nx))
    return part


def grow(mask: Mask) -> Mask:
    wide = np.pad(mask, 1)
    return wide[1:-1, 1:-1] | wide[:-2, 1:-1] | wide[2:, 1:-1] | wide[1:-1, :-2] | wide[1:-1, 2:]


def erode(mask: Mask) -> Mask:
    return ~grow(~mask) & mask


def outline(shape: str, u: NDArray[np.float32], v: NDArray[np.float32]) -> Mask:
    """The shape inside the square from -1 to 1; `v` grows downwards."""
    match shape:
        case "circle":
            return u * u + v * v <= 1
        case "square":
            return np.ones(u.shape, dtype=bool)
        case "diamond":
            return np.abs(u) + np.abs(v) <= 1
        case "triangle":
            return np.abs(u) <= (1 + v) / 2
        case "cross":
            return (np.abs(u) <= ARM) | (np.abs(v) <= ARM)
        case _:  # ring
            square = u * u + v * v
            return (square <= 1) & (square >= 0.22)


def shape_of(body: Mask) -> str | None:
    """The outline that overlaps best when laid over the object's own box."""
    rows, columns = np.flatnonzero(body.any(1)), np.flatnonzero(body.any(0))
    tall, wide = len(rows), len(columns)
    if not 0.7 <= tall / wide <= 1.43:
        return None
    top, left = rows[0], columns[0]
    part = body[top : rows[-1] + 1, left : columns[-1] + 1]
    part = part.repeat(SHARP, 0).repeat(SHARP, 1)
    v = (2 * np.arange(part.shape[0], dtype=np.float32) + 1) / part.shape[0] - 1
    u = (2 * np.arange(part.shape[1], dtype=np.float32) + 1) / part.shape[1] - 1
    overlaps = {}
    for shape in AREAS:
        ideal = outline(shape, *np.broadcast_arrays(u[None, :], v[:, None]))
        overlaps[shape] = float((part & ideal).sum() / (part | ideal).sum())
    best = max(overlaps, key=lambda shape: overlaps[shape])
    return best if overlaps[best] >= LEAST_OVERLAP else None


def place(body: Mask) -> str:
    """Where the centre of gravity lies; the longer way off the centre decides."""
    rows, columns = np.nonzero(body)
    down = (rows.mean() + 0.5) / body.shape[0] - 0.5
    right = (columns.mean() + 0.5) / body.shape[1] - 0.5
    if max(abs(down), abs(right)) < OFF_CENTRE:
        return "centre"
    if abs(right) > abs(down):
        return "right" if right > 0 else "left"
    return "bottom" if down > 0 else "top"


def size(body: Mask, shape: str | None) -> str | None:
    """The radius that a shape of this area has, to the nearest size."""
    if shape is None:
        return None
    radius = np.sqrt(body.mean() / AREAS[shape])
    return min(RADII, key=lambda name: abs(RADII[name] - radius))


def repeated(pixels: Pixels) -> bool:
    """Whether a thing stands in the middle of each quarter, as the adapter ``pattern`` draws."""
    other = nearest(pixels) != NAMES.index(background_of(pixels))
    high, wide = other.shape[0] // 2, other.shape[1] // 2
    quarters = [
        other[top : top + high, left : left + wide] for top in (0, high) for left in (0, wide)
    ]
    return all(_in_the_middle(quarter) for quarter in quarters)


def _in_the_middle(mask: Mask) -> bool:
    if mask.mean() < SMALLEST_QUARTER:
        return False
    away = [
        abs((places.mean() + 0.5) / side - 0.5)
        for places, side in zip(np.nonzero(mask), mask.shape, strict=True)
    ]
    return max(away) < OFF_QUARTER


def saturation(pixels: Pixels) -> float:
    """How vivid a picture is: the mean distance of its pixels from grey, 0 to 1."""
    return float(np.abs(pixels.astype(np.float32) - 128).max(-1).mean() / 127)
