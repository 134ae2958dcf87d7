"""Settings are read once, and a wrong one stops the start with its name."""

from pathlib import Path

import pytest

from farm.errors import InvalidInput
from farm.settings import GatewaySettings, load


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("FARM_DATA", "FARM_STORE", "FARM_URL", "FARM_CHECKPOINTS", "FARM_NAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    monkeypatch.setenv("REDIS_URL", "redis://localhost")


def test_defaults_lie_in_the_users_data_directory(tmp_path: Path) -> None:
    settings = load(GatewaySettings)
    assert settings.data == tmp_path / "amused-farm"
    assert settings.store_url == str(tmp_path / "amused-farm" / "store")
    assert (settings.host, settings.port, settings.checkpoints) == ("127.0.0.1", 8400, ())


def test_checkpoints_are_a_list(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FARM_CHECKPOINTS", "/a/b, owner/name@c,")
    assert load(GatewaySettings).checkpoints == ("/a/b", "owner/name@c")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("FARM_PORT", "eighty"), ("FARM_PORT", "70000"), ("REDIS_URL", "localhost:6379"),
        ("FARM_OPEN", "perhaps"), ("FARM_NAME", "Not A Name"), ("FARM_URL_SECONDS", "0"),
    ],
)  # fmt: skip
def test_a_wrong_value_is_named(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(InvalidInput) as error:
        load(GatewaySettings)
    assert error.value.field == name
    assert "\n" not in str(error.value)


def test_a_missing_value_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("REDIS_URL")
    with pytest.raises(InvalidInput, match="not set") as error:
        load(GatewaySettings)
    assert error.value.field == "REDIS_URL"
    assert "redis://" in str(error.value)


def test_the_secret_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FARM_SECRET", "hunter2")
    assert "hunter2" not in repr(load(GatewaySettings))
