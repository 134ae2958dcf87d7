"""The rows of a task come once each and in their order, however many are asked for at a time."""

from concurrent.futures import Executor, Future
from typing import Any, cast

from fake_engine import INFO
from hypothesis import given
from hypothesis import strategies as st

from farm.errors import RenderError
from farm.job import Chunk, Format, Lease, Priority
from farm.renders import NumberedSpec, Renders
from farm.spec import RenderRequest, RenderSpec
from farm_workers.leased_task import LeasedTask
from farm_workers.worker.inputs import NOTHING, Awaited, Inputs
from farm_workers.worker.task_rows import InputFailed, TaskRows

BROKEN = "b" * 64


class Reader:
    """Has read everything at once; a broken input has no rows."""

    def prepare(self, tenant: str, spec: RenderSpec, executor: Executor) -> Awaited:
        if spec.latents is None:
            return NOTHING
        read: Future[Inputs] = Future()
        if spec.latents == BROKEN:
            read.set_exception(RenderError("broken"))
        else:
            read.set_result(Inputs(notes=(spec.latents,)))
        return read


def spec_of(number: int, images: int, latents: str | None) -> RenderSpec:
    given: dict[str, Any] = {"num_images": images, "seed": 2**64 - 1 - number}
    if latents:
        given["latents"] = latents
    return RenderRequest(prompt=f"number {number}", **given).resolve(INFO, seed=0)


@given(
    kinds=st.lists(st.tuples(st.integers(1, 4), st.sampled_from([None, "a" * 64, BROKEN]))),
    plain=st.booleans(),
    most=st.integers(1, 9),
    alone=st.booleans(),
    skip=st.sets(st.integers(0, 12)),
    data=st.data(),
)
def test_each_row_comes_once_in_its_order(
    kinds: list[tuple[int, str | None]],
    plain: bool,
    most: int,
    alone: bool,
    skip: set[int],
    data: st.DataObject,
) -> None:
    specs = [
        NumberedSpec(3 * number, spec_of(number, images, None if plain else latents))
        for number, (images, latents) in enumerate(kinds)
    ]
    all_rows = [(one.render, row) for one in specs for row in one.spec.rows()]
    skip = {number for number in skip if number < len(all_rows)}
    ids = [(render, row.index) for render, row in all_rows]
    wanted = data.draw(st.none() | st.just(set(ids[::2])))
    lane = "fake@0/text2img/32x32"
    chunk = Chunk(
        job="j", number=0, tenant="t", sink="tokens", format=Format.TOKENS, lane=lane,
        renders=Renders.of(specs),
    )  # fmt: skip
    lease = Lease(
        "j", 0, 0, 1, lane, len(ids), 1, Priority.BULK, alone=alone, inline="", skip=tuple(skip)
    )
    rows = TaskRows(
        LeasedTask(lease), chunk, INFO, cast(Any, Reader()), cast(Any, None),
        tokens_alone=True, wanted=wanted,
    )  # fmt: skip

    taken, failed, numbers = [], [], []
    while True:
        number = rows.next_number
        try:
            ready = rows.take(most)
        except InputFailed as failure:
            failed += failure.rows
            continue
        if not ready.rows:
            break
        assert len(ready.rows) <= most
        numbers.append(number)
        taken += ready.rows
        for render, row in ready.rows:
            assert ready.inputs.notes == ((row.spec.latents,) if row.spec.latents else ())
            assert rows.notes(render) == ready.inputs.notes
    assert rows.next_number is None

    to_make = [
        (number, render, row)
        for number, (render, row) in enumerate(all_rows)
        if number not in skip and (wanted is None or (render, row.index) in wanted)
    ]
    good = [(render, row.spec) for _, render, row in to_make if row.spec.latents != BROKEN]
    bad = [(render, row.spec) for _, render, row in to_make if row.spec.latents == BROKEN]
    assert [(render, row.spec) for render, row in taken] == good
    assert [(render, row.spec) for render, row in failed] == bad
    assert [row.seed for _, row in taken] == [
        row.seed for _, _, row in to_make if row.spec.latents != BROKEN
    ]
    if most == 1:
        assert numbers == [number for number, _, row in to_make if row.spec.latents != BROKEN]
    left_out = {ids[number] for number in skip if wanted is None or ids[number] in wanted}
    assert set(rows.left_out) == left_out
