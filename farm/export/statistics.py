"""What is counted of a data set, to be read before it is trained on: ``statistics.json``.

Diversity is told by tokens, which every picture has, whatever it is stored as. A near duplicate
shares at least ``NEAR`` of its tokens, place by place, with an earlier picture of its shard; an
exact one all of them.
"""

import array
import collections
import itertools
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from farm.formats.manifest import ManifestRow

STATISTICS = "statistics.json"
NEAR = 0.9
_DIGITS = 4


class _Lane:
    def __init__(self) -> None:
        self.pictures = 0
        self.failed = 0
        self.confidences = array.array("d")  # eight bytes a picture

    def told(self) -> dict[str, Any]:
        low, middle, high = np.quantile(self.confidences or [np.nan], [0.1, 0.5, 0.9]).tolist()
        known = bool(self.confidences)
        return {
            "pictures": self.pictures,
            "failed": self.failed,
            "failure_rate": round(self.failed / max(self.pictures + self.failed, 1), _DIGITS),
            "confidence": {
                "p10": round(low, _DIGITS) if known else None,
                "median": round(middle, _DIGITS) if known else None,
                "p90": round(high, _DIGITS) if known else None,
            },
        }


class Statistics:
    """Counts rows as they come, shard by shard."""

    def __init__(self) -> None:
        self._lanes: dict[str, _Lane] = collections.defaultdict(_Lane)
        self.shards: list[dict[str, Any]] = []

    @property
    def lanes(self) -> Mapping[str, dict[str, Any]]:
        """By checkpoint, mode and size."""
        return {name: lane.told() for name, lane in sorted(self._lanes.items())}

    def add_shard(self, name: str, rows: Sequence[ManifestRow]) -> None:
        """Args:
        name: of the shard or folder.
        rows: of the pictures in it, with their tokens.
        """
        for row in rows:
            self.add(row)
        grids = [np.frombuffer(row.tokens or b"", "<u2") for row in rows]
        exact, near = duplicates(grids)
        self.shards.append(
            {
                "shard": name,
                "pictures": len(rows),
                "token_entropy": round(entropy(grids), _DIGITS),
                "exact_duplicates": exact,
                "near_duplicates": near,
            }
        )

    def add(self, row: ManifestRow) -> None:
        """A picture, or one that could not be made."""
        lane = self._lanes[_lane_of(row)]
        lane.pictures += row.error is None
        lane.failed += row.error is not None
        if row.confidence is not None:
            lane.confidences.append(row.confidence)

    def told(self) -> dict[str, Any]:
        """As JSON has it."""
        return {"lanes": self.lanes, "shards": self.shards}

    def to_json(self) -> str:
        return json.dumps(self.told(), indent=1, ensure_ascii=False) + "\n"

    def summary(self) -> list[str]:
        """Lines of Markdown."""
        exact = sum(one["exact_duplicates"] for one in self.shards)
        near = sum(one["near_duplicates"] for one in self.shards)
        entropies = [one["token_entropy"] for one in self.shards] or [0.0]
        return [
            "| checkpoint, mode, size | pictures | failed | median confidence |",
            "|---|---|---|---|",
            *(
                f"| `{name}` | {lane['pictures']:,} | {lane['failed']:,} "
                f"| {lane['confidence']['median']} |"
                for name, lane in self.lanes.items()
            ),
            "",
            f"Token entropy of a shard: {min(entropies)} to {max(entropies)} bits. Duplicates "
            f"within their shard: {exact:,} exact, {near:,} near (at least {NEAR:.0%} of the "
            f"tokens equal). `{STATISTICS}` has each shard's.",
        ]


def entropy(grids: Sequence[NDArray[np.uint16]]) -> float:
    """Shannon's, in bits a token, of the tokens of several pictures; 0 if there are none."""
    tokens = np.concatenate(grids) if grids else np.zeros(0, np.uint16)
    if not tokens.size:
        return 0.0
    shares = np.bincount(tokens)[np.unique(tokens)] / tokens.size
    return float(abs(np.sum(shares * np.log2(shares))))


def duplicates(grids: Sequence[NDArray[np.uint16]]) -> tuple[int, int]:
    """How many pictures repeat an earlier one: exactly, and nearly.

    Args:
        grids: tokens of each picture, flat; only those of one length are compared.
    """
    exact = near = 0
    by_length: dict[int, list[NDArray[np.uint16]]] = collections.defaultdict(list)
    for grid in grids:
        by_length[grid.size].append(grid)
    for length, alike in by_length.items():
        if length:
            found = _duplicates(np.stack(alike))
            exact, near = exact + found[0], near + found[1]
    return exact, near


def _duplicates(table: NDArray[np.uint16]) -> tuple[int, int]:
    """The same for the rows of a table.

    Rows with at most ``most`` different tokens agree in at least one of ``most + 1`` bands, so only
    rows with a band in common are compared; see ``farm.export.duplicates``.
    """
    exact = near = 0
    length = table.shape[1]
    most = length - math.ceil(NEAR * length)
    edges = [length * band // (most + 1) * table.itemsize for band in range(most + 2)]
    bands = list(enumerate(itertools.pairwise(edges)))
    seen: dict[bytes, int] = {}
    buckets: dict[tuple[int, bytes], list[int]] = collections.defaultdict(list)
    for number, row in enumerate(table):
        text = row.tobytes()
        if seen.setdefault(text, number) != number:
            exact += 1
            continue
        alike = [buckets[band, text[low:high]] for band, (low, high) in bands]
        count = sum(map(len, alike))
        if count:
            places = slice(number) if count > number else list(set().union(*alike))
            near += np.count_nonzero(table[places] == row, axis=1).max() >= NEAR * length
        for bucket in alike:
            bucket.append(number)
    return exact, int(near)


def _lane_of(row: ManifestRow) -> str:
    spec = json.loads(row.spec)
    return f"{spec['checkpoint']}/{spec['mode']}/{row.height}x{row.width}"
