"""Addresses that carry a password are checked and shown without it."""

import pytest

from farm.addresses import (
    ENCODE_HINT,
    check_redis_url,
    is_loopback,
    masked,
    split_host,
    without_secrets,
)
from farm.errors import InvalidInput
from farm.local.probes import replies, serves
from farm.queue import connect
from farm.settings import GatewaySettings, load

MALFORMED = [
    "hunter2@host:6379",
    "redis:/:hunter2@host",
    "http://:hunter2@host",
    "redis://:hunter2@",
    "redis://:hunter2@host:port",
    "redis://:hunter2@host:99999",
    "redis://:hunter2@[::1",
    "redis://:hunter2#x@host",
    "redis://:hunter2/x@host",
    "redis://:hunter2?x@host",
    "redis://:hunter2%x@host",
    "redis://:hunter2@host/x",
    "redis://:x/hunter2@host",
    "unix://:hunter2@",
]


@pytest.mark.parametrize("url", MALFORMED)
def test_a_malformed_address_of_redis_is_refused_without_its_password(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REDIS_URL", url)
    for refuse in (
        lambda: check_redis_url(url),
        lambda: connect(url),
        lambda: load(GatewaySettings),
    ):
        with pytest.raises(InvalidInput) as caught:
            refuse()
        assert caught.value.field == "REDIS_URL"
        assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("url", ["redis://:a#b@host", "redis://:a/b@host", "redis://:a?b@host"])
def test_a_password_with_a_special_character_gets_the_hint_to_encode_it(url: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        check_redis_url(url)
    assert caught.value.hint == ENCODE_HINT


@pytest.mark.parametrize(
    "option",
    [
        "socket_timeout=hunter2",
        "socket_timeout=0",
        "hunter2=1",
        "retry=hunter2",  # of the client, but it takes no text
        "ssl_ca_certs=/hunter2",  # without TLS
    ],
)
def test_an_option_that_is_not_understood_is_refused_without_its_value(option: str) -> None:
    for refuse in (connect, serves, replies):
        with pytest.raises(InvalidInput) as caught:
            refuse(f"redis://host?{option}")
        assert "hunter2" not in str(caught.value)
        assert caught.value.hint is not None
        assert "socket_timeout" in caught.value.hint


@pytest.mark.parametrize("url", ["redis://host", "rediss://host", "unix:///run/a.sock"])
def test_redis_knows_every_option_that_is_taken(url: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        check_redis_url(f"{url}?unknown=1")
    for option in str(caught.value.hint).partition(": ")[2].split(", "):
        value = "required" if option == "ssl_cert_reqs" else "2"
        connect(f"{url}?{option}={value}").connection_pool.make_connection()


@pytest.mark.parametrize(
    "url",
    [
        "redis://host",
        "redis://:p%40ss@host:6379/3",
        "rediss://u:p@[::1]:1",
        "unix:///run/a.sock?db=2",
        "rediss://host/0?ssl_ca_certs=/etc/ca.pem&ssl_cert_reqs=none&socket_timeout=30",
    ],
)
def test_a_right_address_is_taken(url: str) -> None:
    assert check_redis_url(url) == url


def test_no_settings_show_a_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REDIS_URL", "redis://:hunter2@host")
    monkeypatch.setenv("FARM_STORE", "s3://bucket?region=hunter2")
    assert "hunter2" not in repr(load(GatewaySettings))


def test_an_address_is_shown_without_user_password_and_query() -> None:
    assert without_secrets("redis://me:hunter2@host:1/0?a=hunter2#hunter2") == "redis://host:1/0"
    assert without_secrets("redis://me:hunter2@[") == "an address that cannot be read"
    assert masked('no "http://me:hunter2@host/x"') == 'no "http://host/x"'


@pytest.mark.parametrize(
    ("name", "here"),
    [
        ("127.0.0.1", True), ("127.9.9.9", True), ("::1", True), ("localhost", True),
        ("a.localhost", True), ("0.0.0.0", False), ("::", False), ("example.org", False),
        ("localhost.example.org", False), ("10.0.0.1", False),
    ],
)  # fmt: skip
def test_loopback_is_told_from_every_other_address(name: str, here: bool) -> None:
    assert is_loopback(name) is here


@pytest.mark.parametrize("text", ["[", "]", "[::1", "a:b", "host:99999", "host/path", "a@b/c", "?"])
def test_a_malformed_host_has_no_name(text: str) -> None:
    assert split_host(text) is None
