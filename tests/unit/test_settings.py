"""Settings are read once, and a wrong one stops the start with its name."""

from pathlib import Path

import pytest

from farm.errors import InvalidInput
from farm.local.embedded import Embedded
from farm.local.plan import Plan
from farm.settings import GatewaySettings, load


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in (
        "FARM_DATA",
        "FARM_STORE",
        "FARM_URL",
        "FARM_CHECKPOINTS",
        "FARM_NAME",
        "FARM_KEYS",
    ):
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


def test_an_empty_variable_counts_as_one_that_is_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("KEYS", "TLS_CERT", "TLS_KEY", "PORT", "STORE_LINKS", "QUOTA_PICTURES", "DATA"):
        monkeypatch.setenv(f"FARM_{name}", "")
    monkeypatch.setenv("FARM_OPEN", "1")
    settings = load(GatewaySettings)
    assert (settings.keys, settings.tls_cert, settings.port) == (None, None, 8400)
    assert settings.data.is_absolute()
    monkeypatch.setenv("REDIS_URL", "")
    with pytest.raises(InvalidInput, match="not set"):
        load(GatewaySettings)


def test_the_secret_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FARM_SECRET", "hunter2")
    assert "hunter2" not in repr(load(GatewaySettings))


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"FARM_OPEN": "1", "FARM_HOST": "0.0.0.0"}, "FARM_OPEN"),
        ({"FARM_OPEN": "1", "FARM_HOST": "::"}, "FARM_OPEN"),
        ({"FARM_OPEN": "1", "FARM_HOST": "farm.example"}, "FARM_OPEN"),
        ({"FARM_OPEN": "1", "FARM_HOST": "0.0.0.0", "FARM_BEHIND_PROXY": "1"}, "FARM_OPEN"),
        ({"FARM_OPEN": "1", "FARM_BEHIND_PROXY": "1"}, "FARM_OPEN"),
        ({"FARM_OPEN": "1", "FARM_KEYS": "/keys.json"}, "FARM_OPEN"),
        ({"FARM_KEYS": "/keys.json", "FARM_HOST": "0.0.0.0"}, "FARM_HOST"),
        ({"FARM_KEYS": "/keys.json", "FARM_TLS_CERT": "/cert.pem"}, "FARM_TLS_CERT"),
    ],
)
def test_a_gateway_that_others_reach_needs_keys_and_encryption(
    monkeypatch: pytest.MonkeyPatch, given: dict[str, str], field: str
) -> None:
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InvalidInput) as error:
        load(GatewaySettings)
    assert error.value.field == field
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "given",
    [
        {"FARM_OPEN": "1"},
        {"FARM_OPEN": "1", "FARM_HOST": "::1"},
        {"FARM_KEYS": "/keys.json", "FARM_HOST": "0.0.0.0", "FARM_BEHIND_PROXY": "1"},
        {"FARM_KEYS": "/keys.json", "FARM_HOST": "::", "FARM_TLS_CERT": "/c", "FARM_TLS_KEY": "/k"},
    ],
)
def test_a_gateway_with_both_may_listen_anywhere(
    monkeypatch: pytest.MonkeyPatch, given: dict[str, str]
) -> None:
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    load(GatewaySettings)


def test_what_the_gateway_refuses_is_told_before_ray_is_started(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    farm = Embedded(Plan(data=tmp_path, port=8400, workers=1, checkpoints=()))
    assert [service.name for service in farm.services()] == [
        "valkey", "gateway", "ray", "scheduler",
    ]  # fmt: skip


def test_farm_up_with_a_keys_file_asks_for_keys(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "run").mkdir()
    plan = Plan(data=tmp_path, port=8400, workers=1, checkpoints=(), redis_url="redis://host")
    monkeypatch.delenv("FARM_KEYS", raising=False)
    assert Embedded(plan).environment["FARM_OPEN"] == "1"
    monkeypatch.setenv("FARM_KEYS", "/keys.json")
    assert Embedded(plan).environment["FARM_OPEN"] == "0"
