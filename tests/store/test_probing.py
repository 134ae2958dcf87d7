"""What a farm does with a store that lets several writers of one object win."""

import logging
from pathlib import Path

import pytest

from farm.errors import InvalidInput
from farm.local.plan import Plan
from farm.store.local import LocalStore
from farm.store.probing import WritesTwice, check_store


class Careless(LocalStore):
    """As some S3 servers do, it ignores that a key is taken."""

    def put(self, key: str, data: bytes, *, content_type: str = "") -> bool:
        self.delete(key)
        super().put(key, data)
        return True


def test_a_store_that_lets_several_writers_win_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WritesTwice, match="17 of 17 writers") as caught:
        check_store(Careless(tmp_path), single_writer=False)
    assert "--single-writer" in (caught.value.hint or "")


class Forgetful(LocalStore):
    """The winner's reply is lost; asked again, the store says that the key is taken."""

    def put(self, key: str, data: bytes, *, content_type: str = "") -> bool:
        super().put(key, data)
        return False


def test_a_store_whose_reply_to_the_winner_was_lost_is_taken(tmp_path: Path) -> None:
    check_store(Forgetful(tmp_path), single_writer=False)


class Swapping(LocalStore):
    """One writer is told that he won, and another one's bytes are kept."""

    def put(self, key: str, data: bytes, *, content_type: str = "") -> bool:
        return super().put(key, b"another's" if data.startswith(b"writer") else data)


def test_a_store_that_keeps_other_bytes_than_the_winners_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WritesTwice):
        check_store(Swapping(tmp_path), single_writer=False)


def test_a_single_writer_may_use_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        check_store(Careless(tmp_path), single_writer=True)
    assert "for a single writer" in caplog.text


def test_a_store_that_cannot_be_used_is_refused_to_a_single_writer_too(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(Exception, match="cannot write"):
        check_store(LocalStore(tmp_path / "file"), single_writer=True)


def test_a_single_writer_is_one_worker(tmp_path: Path) -> None:
    plan = Plan(tmp_path, 8400, 2, checkpoints=("none",), single_writer=True, gpus=0)
    with pytest.raises(InvalidInput, match="2 workers would write"):
        plan.complete()
