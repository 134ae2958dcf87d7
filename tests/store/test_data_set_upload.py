"""A data set in a folder that is brought to a store."""

import os
from pathlib import Path
from typing import Any

import pytest

from farm.errors import Conflict
from farm.export.export import WHOLE, Plan
from farm.export.upload import holds, upload
from farm.store import Store

PLAN = Plan("job", "parquet")
FILES = {"data/train-00000.parquet": b"one", "data/train-00001.parquet": b"two", "README.md": b"#"}


def data_set(folder: Path, files: dict[str, bytes], plan: Plan = PLAN) -> Path:
    for name, data in {**files, WHOLE: plan.to_json().encode()}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def stored(store: Store) -> dict[str, bytes]:
    return {one.key: store.get(one.key) for one in store.list("")}


def test_an_upload_that_was_interrupted_sends_what_is_missing_and_its_mark_last(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = data_set(tmp_path / "set", FILES)
    put = type(store).put

    def fail(self: Store, key: str, data: bytes, **given: Any) -> bool:
        if key.endswith("00001.parquet"):
            raise KeyboardInterrupt
        return put(self, key, data, **given)

    with monkeypatch.context() as broken:
        broken.setattr(type(store), "put", fail)
        with pytest.raises(KeyboardInterrupt):
            upload(folder, store)
    assert WHOLE not in stored(store)
    assert not holds(store, PLAN)
    assert upload(folder, store).sent >= 2
    assert stored(store) == {**FILES, WHOLE: PLAN.to_json().encode()}
    assert holds(store, PLAN)
    assert upload(folder, store) == (4, 0)


def test_another_data_set_is_refused_and_with_overwrite_replaced_as_a_whole(
    store: Store, tmp_path: Path
) -> None:
    upload(data_set(tmp_path / "old", FILES), store)
    store.put("mine.txt", b"mine")
    plan = PLAN._replace(shard_size=7)
    fresh = {"data/train-00000.parquet": os.urandom(8), "README.md": b"#"}
    folder = data_set(tmp_path / "new", fresh, plan)
    before = stored(store)
    with pytest.raises(Conflict, match="train-00000"):
        upload(folder, store)
    assert stored(store) == before
    upload(folder, store, overwrite=True)
    assert stored(store) == {**fresh, WHOLE: plan.to_json().encode(), "mine.txt": b"mine"}
