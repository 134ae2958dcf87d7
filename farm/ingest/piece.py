"""Renders cut into tasks."""

from typing import NamedTuple

from farm.errors import RejectedRender, TooLarge
from farm.job import MAX_JOB_LANES, Chunk, TaskDraft
from farm.spec import Lane


class Piece(NamedTuple):
    """A part of a job, cut into tasks."""

    chunks: tuple[Chunk, ...]
    texts: tuple[str, ...]  # the chunks' JSON
    rejected: tuple[RejectedRender, ...]
    again: bool = False  # it was appended before

    @property
    def renders(self) -> int:
        return sum(len(chunk.renders) for chunk in self.chunks)

    @property
    def pictures(self) -> int:
        return sum(chunk.pictures for chunk in self.chunks)

    @property
    def lanes(self) -> set[Lane]:
        return {Lane.parse(chunk.lane) for chunk in self.chunks}

    def drafts(self, *, inline: bool = False) -> list[TaskDraft]:
        return [
            TaskDraft(
                chunk.number,
                Lane.parse(chunk.lane),
                chunk.pictures,
                chunk.cost,
                text if inline else "",
            )
            for chunk, text in zip(self.chunks, self.texts, strict=True)
        ]


def check_lanes(lanes: int) -> None:
    """Every lane costs the queue something for as long as the job has work in it."""
    if lanes > MAX_JOB_LANES:
        raise too_many_lanes()


def too_many_lanes() -> TooLarge:
    return TooLarge(
        f"the job has renders of more than {MAX_JOB_LANES} checkpoints, modes and sizes",
        field="renders",
        hint="use fewer sizes, or make several jobs of it",
    )
