"""Adapters by name: one tenant's own, fixed for a render at the moment when it comes in."""

import hashlib
from pathlib import Path

import pytest
from fake_adapters import SIZES, adapter_file

from farm.checkpoints.registry import CheckpointRegistry
from farm.errors import Conflict, FarmError, InvalidInput, NotFound
from farm.formats.adapter_file import read_adapter_file
from farm.ingest import adapters as module
from farm.ingest.adapters import Adapters
from farm.ingest.assets import Assets
from farm.ingest.resolver import Resolver
from farm.spec import CheckpointInfo, RenderSpec
from farm.store import open_store

INFO = CheckpointInfo(
    id="owner/tiny", revision="1", pixel_factor=8, size_multiple=8, native_height=64,
    native_width=64, default_guidance=4.0, vocab_size=72, codebook_size=64, mask_token_id=71,
    text_tokens=77, pooled_dim=8, hidden_dim=8, sizes=SIZES,
)  # fmt: skip
WIDE = SIZES.model_copy(
    update={"transformer": SIZES.transformer.model_copy(update={"hidden_size": 24})}
)
OTHER = INFO.model_copy(update={"id": "owner/wide", "sizes": WIDE})
OLD = INFO.model_copy(update={"id": "owner/old", "sizes": None})


class Place:
    """A farm's registry of adapters, and its resolver."""

    def __init__(self, folder: Path, *infos: CheckpointInfo) -> None:
        store, registry = open_store(str(folder)), CheckpointRegistry(infos)
        self.assets = Assets(store)
        self.adapters = Adapters(store, self.assets, registry)
        self._resolver = Resolver(registry, self.assets, self.adapters)

    def resolve(self, *chosen: object, tenant: str = "alice", **given: object) -> RenderSpec:
        data = {"prompt": "x", "adapters": list(chosen), **given}
        return self._resolver.batch(tenant, seed=0).resolve(data, 0).spec


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path, INFO, OTHER, OLD)


def refusal(place: Place, *chosen: object, **given: object) -> str:
    with pytest.raises(FarmError) as error:
        place.resolve(*chosen, **given)
    assert error.value.field == "adapters"
    return str(error.value)


def test_a_name_stands_for_the_file_until_it_is_removed(place: Place) -> None:
    first, second = adapter_file(0), adapter_file(1, rank=3)
    added = place.adapters.add("alice", "dots", first)
    assert (added.sha256, added.size) == (hashlib.sha256(first).hexdigest(), len(first))
    assert (added.rank, added.alpha, added.targets) == (2, 2, ("to_q",))
    assert place.adapters.add("alice", "dots", first) == added
    with pytest.raises(Conflict, match="dots is another adapter already"):
        place.adapters.add("alice", "dots", second)
    place.adapters.add("alice", "a.Line-2", second)
    assert [one.name for one in place.adapters.all("alice")] == ["a.Line-2", "dots"]
    accepted = place.resolve({"adapter": "dots", "scale": 0.5})
    assert [(one.sha256, one.scale) for one in accepted.adapters] == [(added.sha256, 0.5)]
    assert place.adapters.remove("alice", "dots")
    assert not place.adapters.remove("alice", "dots")
    assert refusal(place, {"adapter": "dots"}) == (
        "error[not_found] adapters: you have no adapter 'dots' (there are: a.Line-2)"
    )
    again = place.adapters.add("alice", "dots", second)
    assert place.resolve({"adapter": "dots"}).adapters[0].sha256 == again.sha256
    assert place.assets.read("alice", accepted.adapters[0].sha256) == first


def test_renders_of_one_call_agree_whatever_is_added_meanwhile(place: Place) -> None:
    first = place.adapters.add("alice", "dots", adapter_file(0))
    names = place.adapters.names("alice")
    assert names["dots"] == first.sha256
    place.adapters.remove("alice", "dots")
    second = place.adapters.add("alice", "dots", adapter_file(1))
    assert names["dots"] == first.sha256
    assert place.adapters.names("alice")["dots"] == second.sha256


def test_nobody_sees_or_uses_another_tenants_adapters(place: Place) -> None:
    added = place.adapters.add("alice", "dots", adapter_file(0))
    assert place.adapters.all("bob") == []
    assert not place.adapters.remove("bob", "dots")
    assert "you have no adapter 'dots' (farm adapter add" in refusal(
        place, {"adapter": "dots"}, tenant="bob"
    )
    assert "there is no adapter" in refusal(place, {"adapter": added.sha256}, tenant="bob")
    place.adapters.add("bob", "dots", adapter_file(1))
    assert place.resolve({"adapter": "dots"}).adapters[0].sha256 == added.sha256


def test_a_file_without_a_name_is_used_by_its_hash(place: Place) -> None:
    asset = place.assets.add("alice", adapter_file(5))
    assert (asset.kind, asset.width) == ("adapter", None)
    assert place.resolve({"adapter": f"sha256:{asset.id}"}).adapters[0].sha256 == asset.id
    with pytest.raises(InvalidInput, match="holds adapter, not latents"):
        place.assets.add("alice", adapter_file(5), "latents")


def test_the_alpha_that_is_given_is_kept_in_the_file(place: Place) -> None:
    data = adapter_file(0)
    added = place.adapters.add("alice", "dots", data, alpha=8)
    assert added.alpha == 8
    assert added.sha256 != hashlib.sha256(data).hexdigest()
    assert read_adapter_file(place.assets.read("alice", added.sha256)).alpha == 8
    with pytest.raises(InvalidInput, match="alpha already"):
        place.adapters.add("alice", "lines", adapter_file(0, alpha=4), alpha=8)


def test_an_adapter_fits_the_renders_checkpoint_or_is_refused(place: Place) -> None:
    place.adapters.add("alice", "dots", adapter_file(0))
    place.adapters.add("alice", "wide", adapter_file(0, WIDE))
    assert place.resolve({"adapter": "wide"}, checkpoint="wide").lane.checkpoint == OTHER.name
    for _ in range(2):  # what was found is remembered
        assert "has 24 inputs and 24 outputs" in refusal(place, {"adapter": "wide"})
        assert "has 16 inputs and 16 outputs" in refusal(
            place, {"adapter": "dots"}, checkpoint="wide"
        )
        assert "old takes no adapters" in refusal(place, {"adapter": "dots"}, checkpoint="old")


def test_what_fits_no_checkpoint_is_not_added(tmp_path: Path) -> None:
    place = Place(tmp_path, INFO)
    with pytest.raises(InvalidInput, match="fits none of this farm's checkpoints; owner/tiny"):
        place.adapters.add("alice", "wide", adapter_file(0, WIDE))
    assert place.adapters.all("alice") == []
    waiting = Place(tmp_path / "no-worker-yet")
    assert waiting.adapters.add("alice", "wide", adapter_file(0, WIDE)).name == "wide"


@pytest.mark.parametrize("name", ["", "a b", "../x", "a" * 65, "a" * 64, "x.safetensors", "é"])
def test_a_name_is_short_and_plain(place: Place, name: str) -> None:
    for call in (
        lambda: place.adapters.add("alice", name, adapter_file(0)),
        lambda: place.adapters.remove("alice", name),
    ):
        with pytest.raises(InvalidInput) as error:
            call()
        assert error.value.field == "name"


def test_there_is_a_limit_to_the_names(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_NAMED", 2)
    for name in ("a", "b", "b"):
        place.adapters.add("alice", name, adapter_file(0))
    with pytest.raises(Conflict, match="you have 2 adapters already"):
        place.adapters.add("alice", "c", adapter_file(0))


def test_an_unknown_asset_and_a_wrong_one_are_told_apart(place: Place) -> None:
    assert "there is no adapter eeee" in refusal(place, {"adapter": "e" * 64})
    with pytest.raises(NotFound):
        place.adapters.names("alice")["dots"]
