"""What renders would come to, without a job."""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from farm.ingest.piece import Piece
from farm.job import Chunk, Format

# Means over photographs of 64 to 512 pixels a side; the render and its tokens are in the file.
_FILE_BYTES = 900
_BYTES_PER_PIXEL: Mapping[Format, float] = {
    Format.PNG: 1.0,
    Format.WEBP: 0.75,
    Format.JPEG: 0.25,
    Format.TOKENS: 0.02,
}


class LaneEstimate(NamedTuple):
    """A lane's share of the work."""

    pictures: int
    tasks: int
    row_steps: int
    pace: float  # row-steps/s that the workers measured, all together; 0 if none has


def estimate_bytes(chunks: Iterable[Chunk]) -> int:
    """About how much the pictures take in the store."""
    return int(sum(map(_bytes, chunks)))


def _bytes(chunk: Chunk) -> float:
    pixel = _BYTES_PER_PIXEL[chunk.format]
    return sum(
        chunk.renders.of_each(
            lambda spec: spec.num_images * (_FILE_BYTES + spec.height * spec.width * pixel)
        )
    )


def estimate(piece: Piece, paces: Mapping[str, float]) -> dict[str, Any]:
    """A piece's part of the answer.

    Args:
        piece: what ``Ingest.cut`` made of the renders.
        paces: row-steps/s of all workers together, by lane.
    """
    lanes: dict[str, LaneEstimate] = {}
    for chunk in piece.chunks:
        known = lanes.get(chunk.lane, LaneEstimate(0, 0, 0, paces.get(chunk.lane, 0.0)))
        lanes[chunk.lane] = known._replace(
            pictures=known.pictures + chunk.pictures,
            tasks=known.tasks + 1,
            row_steps=known.row_steps + chunk.cost,
        )
    return {
        "accepted": piece.renders,
        "rejected": len(piece.rejected),
        "errors": [one.to_dict() for one in piece.rejected],
        "pictures": piece.pictures,
        "bytes": estimate_bytes(piece.chunks),
        "lanes": {lane: one._asdict() for lane, one in lanes.items()},
    }
