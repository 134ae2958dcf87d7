"""Jobs: ids, options, states."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from farm.errors import InvalidInput
from farm.job import (
    TERMINAL_JOBS,
    JobOptions,
    JobState,
    Lease,
    Priority,
    check_job_id,
    is_job_id,
    job_id,
)


def test_ids_are_unique_and_in_the_order_of_time() -> None:
    ids = [job_id(now) for now in (1.0, 2.0, 2000000000.0)]
    assert ids == sorted(ids)
    assert len({job_id(5.0) for _ in range(100)}) == 100
    assert all(is_job_id(one) for one in ids)


@pytest.mark.parametrize(
    "text", ["", "j0", "j0-" + "0" * 25, "j0-" + "u" * 26, "../../etc", "j0-" + "0" * 26 + "\n"]
)
def test_what_is_no_id_is_refused_with_the_way_to_the_ids(text: str) -> None:
    with pytest.raises(InvalidInput) as error:
        check_job_id(text)
    assert "farm ls" in str(error.value)


def test_options_have_defaults() -> None:
    options = JobOptions.parse({})
    assert (options.priority, options.format, options.max_failed) == ("normal", "png", 0)


def test_a_deadline_needs_a_zone_and_a_future() -> None:
    soon = datetime.now(UTC) + timedelta(hours=1)
    options = JobOptions.parse({"deadline": soon.isoformat()})
    options.check_deadline()
    assert options.deadline == soon
    wrong: list[Any] = [
        "tomorrow",
        "2027-01-01T00:00:00",
        "2020-01-01T00:00:00Z",
        "9999-01-01T00:00:00Z",
    ]
    for deadline in wrong:
        with pytest.raises(InvalidInput) as error:
            JobOptions.parse({"deadline": deadline}).check_deadline()
        assert error.value.field == "deadline"


@pytest.mark.parametrize(
    "given",
    [
        {"priority": 99}, {"name": "x" * 201}, {"name": "a\nb"}, {"idempotency_key": ""},
        {"idempotency_key": "k" * 201}, {"max_failed": -1}, {"max_failed": 1.5}, {"seed": True},
        {"seed": 2**53}, {"ttl": -1}, {"tenant": "x"}, {"webhook": "http://x"}, {"sink": "Tape!"},
    ],
)  # fmt: skip
def test_a_wrong_option_is_named(given: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput) as error:
        JobOptions.parse(given)
    assert error.value.field == next(iter(given))


def test_states_that_end_are_marked() -> None:
    assert {JobState.DONE, JobState.FAILED, JobState.CANCELLED} == TERMINAL_JOBS


def test_a_lease_without_a_lane_finalises() -> None:
    lease = Lease("j0-x", 3, 1, 1, "", 0, 0, Priority.NORMAL, False, "")
    assert lease.finalise
    assert lease.key == "j0-x/1/3"
