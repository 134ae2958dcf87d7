"""Groups of workers as people write them."""

from pathlib import Path

import pytest

from farm.errors import InvalidInput
from farm.worker_group import WorkerGroup, grown, parse_groups

CHECKPOINTS = ("amused/amused-512@abc", "/data/shapes-64", "tiny")


def parse(text: str) -> tuple[WorkerGroup, ...]:
    return parse_groups(text, CHECKPOINTS, gpus=1, cpus=0)


def test_a_number_is_workers_of_every_checkpoint() -> None:
    [group] = parse("2")
    assert group == WorkerGroup("worker", 2, 2, gpus=1, cpus=0)
    assert group.workers(2) == ["worker-0", "worker-1"]
    assert group.environment == {}


def test_groups_have_checkpoints_devices_and_ranges() -> None:
    gpu, cpu = parse("amused-512:4xgpu, shapes-64+tiny:0-3x2cpu")
    assert gpu == WorkerGroup("amused-512-gpu", 4, 4, 1, 0, ("amused/amused-512@abc",))
    assert cpu == WorkerGroup(
        "shapes-64-tiny-cpu", 0, 3, 0, 2, ("/data/shapes-64", "tiny"), device="cpu"
    )
    assert cpu.environment == {"FARM_CHECKPOINTS": "/data/shapes-64,tiny", "FARM_DEVICE": "cpu"}
    assert cpu.served == {"shapes-64", "tiny"}
    assert parse("8x0.5gpu")[0].gpus == 0.5


def test_a_file_has_an_entry_on_each_line(tmp_path: Path) -> None:
    file = tmp_path / "workers"
    file.write_text("# GPUs\namused-512:4xgpu\n\nshapes-64:1xcpu  # beside them\n")
    assert parse(str(file)) == parse("amused-512:4xgpu,shapes-64:1xcpu")


def test_entries_may_be_longer_than_the_name_of_a_file() -> None:
    text = ",".join(f"{'+'.join(['tiny'] * count)}:1xcpu" for count in range(1, 20))
    assert len(text) > 255
    assert len(parse(text)) == 19


def test_a_file_that_is_no_text_is_named(tmp_path: Path) -> None:
    file = tmp_path / "workers"
    file.write_bytes(b"\xff\xfe2")
    with pytest.raises(InvalidInput, match="cannot be read") as caught:
        parse(str(file))
    assert str(file) in str(caught.value)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "names no workers"),
        ("two", "'two', which is not understood"),
        ("3-1", "begins with its lower number"),
        ("amused-256:1xgpu", "not a checkpoint of this farm (there are: amused-512, shapes-64"),
        ("1,2", "two entries for the workers worker-0 and so on"),
        ("tiny:1xcpu,tiny:2xcpu", "two entries for the workers tiny-cpu-0"),
        ("tiny:1xtpu", "not understood"),
    ],
)
def test_what_is_not_understood_is_told_in_one_line(text: str, told: str) -> None:
    with pytest.raises(InvalidInput) as error:
        parse(text)
    assert error.value.field == "--workers"
    assert told in str(error.value)
    assert "\n" not in str(error.value)


def test_limits_take_the_place_of_a_groups_own() -> None:
    [group] = parse("2")
    assert (grown(group, None, 5).least, grown(group, None, 5).most) == (2, 5)
    assert (grown(group, 0, None).least, grown(group, 0, None).most) == (0, 2)
    with pytest.raises(InvalidInput, match="fewer than 2 at least"):
        grown(group, None, 1)
