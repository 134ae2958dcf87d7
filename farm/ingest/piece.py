"""Renders cut into tasks."""

from collections.abc import Iterable
from typing import NamedTuple

from farm.errors import RejectedRender, TooLarge
from farm.job import MAX_JOB_LANES, MAX_TASK_PICTURES, Chunk, NumberedSpec, TaskDraft
from farm.spec import Lane


class Piece(NamedTuple):
    """A part of a job, cut into tasks."""

    chunks: tuple[Chunk, ...]
    texts: tuple[str, ...]  # the chunks' JSON
    rejected: tuple[RejectedRender, ...]

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


def split(renders: Iterable[NumberedSpec], *, max_cost: float) -> Iterable[list[NumberedSpec]]:
    """Groups of at most ``MAX_TASK_PICTURES`` pictures and about ``max_cost`` row-steps; a render
    that is larger stays whole."""
    group: list[NumberedSpec] = []
    pictures = cost = 0
    for numbered in renders:
        spec = numbered.spec
        full = pictures + spec.num_images > MAX_TASK_PICTURES or cost + spec.cost > max_cost
        if group and full:
            yield group
            group, pictures, cost = [], 0, 0
        group.append(numbered)
        pictures += spec.num_images
        cost += spec.cost
    if group:
        yield group
