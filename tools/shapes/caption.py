"""What people may call a scene: captions from full sentences down to one word."""

from __future__ import annotations

from random import Random

from scene import Scene, Thing

SIZE_WORDS = {
    "small": ("small", "small", "little", "tiny"),
    "medium": ("medium", "medium-sized", "medium"),
    "large": ("large", "large", "big", "huge"),
}
SHAPE_WORDS = {
    "circle": ("circle", "circle", "circle", "disc"),
    "square": ("square", "square", "square", "box"),
    "triangle": ("triangle",),
    "diamond": ("diamond",),
    "cross": ("cross", "cross", "cross", "plus"),
    "ring": ("ring", "ring", "ring", "donut"),
}
PLACE_WORDS = {
    "left": ("on the left", "on the left", "at the left", "to the left", "left"),
    "right": ("on the right", "on the right", "at the right", "to the right", "right"),
    "top": ("at the top", "at the top", "on top", "on the top", "top"),
    "bottom": ("at the bottom", "at the bottom", "on the bottom", "bottom"),
    "centre": ("in the centre", "in the middle", "in the center", "centre", "in the centre"),
}
LEADS = ("", "", "", "", "a picture of ", "a drawing of ", "an image of ", "draw ")
RELATIONS = {"left": ("left of", "to the left of"), "top": ("above", "over")}


def noun(rng: Random, thing: Thing, *, size: bool, colour: bool = True) -> str:
    words = [rng.choice(SIZE_WORDS[thing.size])] if size else []
    words += [thing.colour] if colour else []
    return " ".join([*words, rng.choice(SHAPE_WORDS[thing.shape])])


def prompt(scene: Scene) -> str:
    """The plain caption that says everything: the form of the evaluation's prompts."""
    named = [
        f"a {thing.size} {thing.colour} {thing.shape} {PLACE_WORDS[thing.place][0]}"
        for thing in scene.things
    ]
    return f"{' and '.join(named)} on a {scene.background} background"


def caption(rng: Random, scene: Scene) -> str:
    """A caption that is true of the scene; most name all of it, some only a part."""
    if rng.random() < 0.15:
        return fragment(rng, scene)
    text = _of_one(rng, scene) if len(scene.things) == 1 else _of_two(rng, scene)
    return rng.choice(LEADS) + text


def _of_one(rng: Random, scene: Scene) -> str:
    thing = scene.things[0]
    named = noun(rng, thing, size=rng.random() < 0.7)
    place = " " + rng.choice(PLACE_WORDS[thing.place]) if rng.random() < 0.75 else ""
    ground = f"{scene.background} background"
    return rng.choice(
        (
            f"a {named}{place} on a {ground}",
            f"a {named}{place} on a {ground}",
            f"{named}{place}, {ground}",
            f"a {ground} with a {named}{place}",
            f"a {named} on a {ground}{place}",
            f"a {named}{place} on {scene.background}",
        )
    )


def _of_two(rng: Random, scene: Scene) -> str:
    first, second = scene.things
    size = rng.random() < 0.6
    one, two = noun(rng, first, size=size), noun(rng, second, size=size)
    at_one, at_two = (rng.choice(PLACE_WORDS[t.place]) for t in (first, second))
    ground = f"{scene.background} background"
    return rng.choice(
        (
            f"a {one} {at_one} and a {two} {at_two} on a {ground}",
            f"a {two} {at_two} and a {one} {at_one} on a {ground}",
            f"a {one} {rng.choice(RELATIONS[first.place])} a {two} on a {ground}",
            f"a {one} and a {two} on a {ground}",
            f"{one} {at_one}, {two} {at_two}, {ground}",
        )
    )


def fragment(rng: Random, scene: Scene) -> str:
    """A word or two, as people write into a negative prompt."""
    thing = rng.choice(scene.things)
    shape = rng.choice(SHAPE_WORDS[thing.shape])
    size = rng.choice(SIZE_WORDS[thing.size])
    return rng.choice(
        (
            thing.colour,
            thing.colour,
            shape,
            f"a {shape}",
            f"{thing.colour} {shape}",
            f"a {thing.colour} {shape}",
            f"{size} {shape}",
            f"a {size} {thing.colour} {shape}",
            f"{scene.background} background",
            f"{scene.background} background",
            f"a {scene.background} background",
            f"a {shape} {rng.choice(PLACE_WORDS[thing.place])}",
            rng.choice(PLACE_WORDS[thing.place]),
        )
    )


def words() -> list[str]:
    """Every word a caption can hold, for the tokenizer."""
    from scene import COLOURS

    texts = [*COLOURS, *LEADS, "background on a with and"]
    for table in (SIZE_WORDS, SHAPE_WORDS, PLACE_WORDS, RELATIONS):
        texts += [text for variants in table.values() for text in variants]
    return sorted({word for text in texts for word in text.replace("-", " ").split()})
