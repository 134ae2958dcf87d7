"""A data set in a folder that is brought to a store."""

import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from farm.errors import Conflict
from farm.export.export import WHOLE, Plan
from farm.export.upload import holds, upload
from farm.store import Store, open_store

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
    with pytest.raises(Conflict, match="another export"):
        upload(folder, store)
    assert stored(store) == before
    upload(folder, store, overwrite=True)
    assert stored(store) == {**fresh, WHOLE: plan.to_json().encode(), "mine.txt": b"mine"}
    (folder / "README.md").write_bytes(b"other")
    with pytest.raises(Conflict, match=r"README\.md is there with other bytes"):
        upload(folder, store)


def test_overwriting_the_same_data_set_leaves_none_of_its_files_that_it_has_no_more(
    store: Store, tmp_path: Path
) -> None:
    """Beside ``metadata.jsonl`` of an earlier version ``datasets`` does not read the new one."""
    before = {"data/a.tar": b"a", "data/metadata.jsonl": b"{}"}
    upload(data_set(tmp_path / "before", before), store)
    files = {"data/a.tar": b"a", "data/metadata.parquet": b"p"}
    sent = upload(data_set(tmp_path / "after", files), store, overwrite=True)
    assert stored(store) == {**files, WHOLE: PLAN.to_json().encode()}
    assert (sent.files, sent.sent) == (3, 2), "what is the same is not sent again"


@pytest.mark.parametrize("whole", [True, False])
def test_nothing_of_a_replaced_data_set_stays_wherever_that_was_interrupted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: bool
) -> None:
    """``whole``: whether the upload of the replaced one came to its end."""
    store = open_store(str(tmp_path / "store"))
    old, plan = data_set(tmp_path / "old", FILES), PLAN._replace(target="imagefolder")
    fresh = {"train/00000/a.png": b"a", "README.md": b"#"}
    folder = data_set(tmp_path / "new", fresh, plan)
    left = 0  # calls that change the store until one is interrupted

    def counted(call: Callable[..., Any]) -> Callable[..., Any]:
        def counting(*given: Any, **options: Any) -> Any:
            nonlocal left
            left -= 1
            if left < 0:
                raise KeyboardInterrupt
            return call(*given, **options)

        return counting

    for name in ("put", "delete"):
        monkeypatch.setattr(type(store), name, counted(getattr(type(store), name)))
    for steps in range(20):
        left = 1000 if whole else 3
        with contextlib.suppress(KeyboardInterrupt):
            upload(old, store, overwrite=True)
        left = steps
        with contextlib.suppress(KeyboardInterrupt):
            upload(folder, store, overwrite=True)
        if left >= 0:
            break
        left = 1000
        upload(folder, store, overwrite=True)
        assert stored(store) == {**fresh, WHOLE: plan.to_json().encode()}
    assert left >= 0, "at last it was not interrupted any more"
