"""Near duplicates by a perceptual hash: of pictures that look alike, one is kept."""

import re
from array import array
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from farm.errors import InvalidInput

MIN_QUALITY = 50  # of PDQ; the hash of a plainer picture says little, so such pictures all stay
WORDS = 4  # of 64 bits, in a hash
MAX_DISTANCE = 63
FEW = 512  # hashes, which are all compared with each other
PAIRS = 2**18  # that are compared at a time; a hash with more is compared alone
FLIPPED = 16  # the distance from which on bands may differ in a bit, so that few wide ones do

Hashes = NDArray[np.uint64]  # (pictures, WORDS)


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
    doubt: float  # 1 - confidence
    place: int  # in the data set
    pdq: bytes


def duplicates(pictures: Iterable[HashedPicture], distance: int) -> Iterator[int]:
    """Places of the pictures that can go: each is within the distance of a better one that stays,
    and no two that stay are. The more confident one is better, then the earlier one."""
    doubts, places, hashes = array("d"), array("q"), bytearray()
    for doubt, place, pdq in pictures:
        doubts.append(doubt)
        places.append(place)
        hashes += pdq
    order = np.lexsort((places, doubts))
    best_first = np.frombuffer(hashes, np.uint64).reshape(-1, WORDS)[order]
    for number in order[~_kept(best_first, distance)]:
        yield places[number]


def _kept(hashes: Hashes, distance: int) -> NDArray[np.bool_]:
    """Which stay. The better half is settled first: it takes from the other half what is like it,
    and what is left there is settled in the same way."""
    if len(hashes) <= FEW:
        return _kept_of_few(hashes, distance)
    half = len(hashes) // 2
    better, worse = hashes[:half], hashes[half:]
    kept = np.zeros(len(hashes), np.bool_)
    kept[:half] = _kept(better, distance)
    unlike = np.flatnonzero(~_near(worse, better[kept[:half]], distance))
    kept[half + unlike] = _kept(worse[unlike], distance)
    return kept


def _kept_of_few(hashes: Hashes, distance: int) -> NDArray[np.bool_]:
    alike = _distances(hashes[:, None], hashes) <= distance
    kept = np.ones(len(hashes), np.bool_)
    for number in np.flatnonzero(np.count_nonzero(alike, axis=1) > 1):
        if kept[number]:
            kept[number + 1 :] &= ~alike[number, number + 1 :]
    return kept


def _near(hashes: Hashes, others: Hashes, distance: int) -> NDArray[np.bool_]:
    """Which hashes are within the distance of one of the others.

    Hashes that differ in at most ``distance`` bits agree in at least one of ``distance + 1`` bands,
    or differ by at most a bit in one of half as many, so only such pairs are compared (multi-index
    hashing, Norouzi, Punjani and Fleet 2012, https://arxiv.org/abs/1307.2982).
    """
    flips = distance >= FLIPPED
    bands = distance // (2 if flips else 1) + 1
    width = min(64 // -(-bands // WORDS), len(others).bit_length())
    near = np.zeros(len(hashes), np.bool_)
    for band in range(bands):
        ours, theirs = (_band(one, band, width) for one in (hashes, others))
        by_value = others[np.argsort(theirs)]
        counts = np.bincount(theirs, minlength=1 << width)
        starts = np.cumsum(counts) - counts
        for flip in [0, *(1 << bit for bit in range(width if flips else 0))]:
            left = np.flatnonzero(~near & (counts[ours ^ flip] > 0))
            values = ours[left] ^ flip
            for some in _portions(counts[values]):
                count, start = counts[values[some]], starts[values[some]]
                begun = np.cumsum(count) - count
                left_side = np.repeat(left[some], count)
                right_side = np.arange(len(left_side)) + np.repeat(start - begun, count)
                alike = _distances(hashes[left_side], by_value[right_side]) <= distance
                near[left_side[alike]] = True
    return near


def _band(hashes: Hashes, band: int, width: int) -> NDArray[np.int64]:
    """So many bits of each; no two bands have one in common."""
    place, word = divmod(band, WORDS)
    return (hashes[:, word] >> (place * width) & ((1 << width) - 1)).astype(np.int64)


def _portions(counts: NDArray[np.int64]) -> Iterator[slice]:
    """Of at most ``PAIRS`` together, as far as single ones allow."""
    ends = np.cumsum(counts)
    start = 0
    while start < len(counts):
        most = ends[start] - counts[start] + PAIRS
        stop = max(int(np.searchsorted(ends, most, side="right")), start + 1)
        yield slice(start, stop)
        start = stop


def _distances(left: Hashes, right: Hashes) -> NDArray[np.uint16]:
    """In how many bits they differ."""
    found = np.zeros(np.broadcast_shapes(left.shape, right.shape)[:-1], np.uint16)
    for word in range(WORDS):
        found += np.bitwise_count(left[..., word] ^ right[..., word])
    return found
