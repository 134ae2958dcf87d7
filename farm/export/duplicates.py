"""Near duplicates by a perceptual hash: of pictures that look alike, one is kept."""

import re
from collections import defaultdict
from collections.abc import Iterable
from itertools import pairwise
from typing import NamedTuple

from farm.errors import InvalidInput

MIN_QUALITY = 50  # of PDQ; the hash of a plainer picture says little, so such pictures all stay
BITS = 256
MAX_DISTANCE = 63


class Dedup(NamedTuple):
    """Pictures whose hashes differ in at most so many bits count as the same."""

    distance: int

    @classmethod
    def parse(cls, text: str) -> "Dedup":
        """From ``pdq:8``."""
        found = re.fullmatch(r"pdq:(\d{1,3})", text)
        if found is None or int(found[1]) > MAX_DISTANCE:
            raise InvalidInput(
                f"{text[:40]!r} is not a way to find duplicates",
                field="--dedup",
                hint=f"pdq:8 keeps one of pictures whose hashes differ in up to 8 bits; "
                f"at most {MAX_DISTANCE}",
            )
        return cls(int(found[1]))

    def __str__(self) -> str:
        return f"pdq:{self.distance}"


class HashedPicture(NamedTuple):
    """Sorts by preference: the most confident first, then the earliest."""

    doubt: float  # 1 - confidence
    place: int  # in the data set
    pdq: int


def duplicates(pictures: Iterable[HashedPicture], distance: int) -> set[int]:
    """Places of the pictures that can go: each is within the distance of a better one that stays,
    and no two that stay are.

    Hashes that differ in at most ``distance`` bits agree in at least one of ``distance + 1`` bands,
    so only pictures with a band in common are compared (multi-index hashing, Norouzi, Punjani and
    Fleet 2012, https://arxiv.org/abs/1307.2982).
    """
    edges = [BITS * band // (distance + 1) for band in range(distance + 2)]
    bands = [(low, (1 << (high - low)) - 1) for low, high in pairwise(edges)]
    kept: list[defaultdict[int, set[int]]] = [defaultdict(set) for _ in bands]
    dropped = set()
    for picture in sorted(pictures):
        values = [(picture.pdq >> low) & mask for low, mask in bands]
        alike = (
            other
            for value, buckets in zip(values, kept, strict=True)
            for other in buckets.get(value, ())
        )
        if any((picture.pdq ^ other).bit_count() <= distance for other in alike):
            dropped.add(picture.place)
            continue
        for value, buckets in zip(values, kept, strict=True):
            buckets[value].add(picture.pdq)
    return dropped
