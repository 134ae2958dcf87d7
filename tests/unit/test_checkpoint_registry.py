"""Which checkpoint a request means, while workers come and go."""

from collections.abc import Sequence

import pytest
from fake_engine import INFO

from farm.checkpoints.registry import REFRESH_SECONDS, CheckpointRegistry
from farm.errors import InvalidInput
from farm.spec import CheckpointInfo


def revision(name: str, number: str) -> CheckpointInfo:
    return INFO.model_copy(update={"id": name, "revision": number})


OLD, NEW, OTHER = revision("a/model", "1"), revision("a/model", "2"), revision("b/other", "1")


class Farm:
    """Workers that hold some checkpoints, and a gateway that has seen all before them."""

    def __init__(self, *named: CheckpointInfo) -> None:
        self.now = 0.0
        self.held: Sequence[CheckpointInfo] = ()
        self.registry = CheckpointRegistry(named, lambda: self.held, lambda: self.now)

    def hold(self, *infos: CheckpointInfo) -> None:
        self.held = infos
        self.now += REFRESH_SECONDS
        self.registry.all()


@pytest.mark.parametrize("named", [(), (OLD, OTHER)], ids=["by workers", "at the start"])
@pytest.mark.parametrize("name", ["a/model", "model", None])
def test_the_revision_is_meant_that_workers_hold(
    named: Sequence[CheckpointInfo], name: str | None
) -> None:
    """Jobs for one that no worker holds any more would wait for ever."""
    farm = Farm(*named)
    farm.hold(OLD, OTHER)
    assert farm.registry.find(name) == OLD
    farm.hold(OTHER, NEW, OLD)
    assert farm.registry.find(name) == OLD, "while the workers are being replaced"
    farm.hold(OTHER, NEW)
    assert farm.registry.find(name) == NEW
    assert farm.registry.all()[0].id == "a/model", "the default stays"
    farm.hold()
    assert farm.registry.find(name) == NEW, "where workers come with the work"
    assert farm.registry.find(OLD.name) == OLD
    farm.hold(OLD)
    assert farm.registry.find(name) == OLD, "it was taken back"


def test_a_last_part_of_two_ids_names_neither() -> None:
    farm = Farm(OLD, revision("b/model", "1"))
    with pytest.raises(InvalidInput, match="no checkpoint 'model'"):
        farm.registry.find("model")
