"""Which rows of the input are submitted."""

import hashlib
import heapq
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import NamedTuple, Self

from farm_client.ndjson import Line


class Selection(NamedTuple):
    """The first ``limit`` rows; of these a sample of ``sample``, in their order.

    The sample depends on the seed and on how many rows there are, and not on their content. With
    one seed a smaller sample is a part of each larger one. Memory holds the sample alone.
    """

    limit: int | None = None
    sample: int | None = None
    seed: int | None = None  # counts as 0

    def over(self, other: Self) -> Self:
        """This selection, with the other's values where it has none."""
        return self._replace(
            limit=self.limit or other.limit,
            sample=self.sample or other.sample,
            seed=other.seed if self.seed is None else self.seed,
        )

    def of(self, lines: Iterable[Line]) -> Iterator[Line]:
        first = islice(lines, self.limit)
        if self.sample is None:
            return first
        return iter(self._sample(first, self.sample))

    def _sample(self, lines: Iterable[Line], count: int) -> list[Line]:
        kept: list[tuple[int, int, Line]] = []  # a heap, the one to go first in front
        for place, line in enumerate(lines):
            one = (-self._rank(place), -place, line)
            if len(kept) < count:
                heapq.heappush(kept, one)
            elif kept and one > kept[0]:
                heapq.heapreplace(kept, one)
        return [line for _, _, line in sorted(kept, key=lambda one: -one[1])]

    def _rank(self, place: int) -> int:
        digest = hashlib.blake2b(f"{self.seed or 0}:{place}".encode(), digest_size=8).digest()
        return int.from_bytes(digest, "big")
