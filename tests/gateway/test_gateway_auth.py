"""Who may do what."""

import hashlib
import os
import re
import time
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import cast
from urllib.parse import parse_qsl

import httpx2
import pytest
from harness import Gateway, Serve, png, post, write_keys

from farm.errors import InvalidInput, NotAllowed
from farm.gateway.app import create_app
from farm.gateway.auth import Authenticator, Forbidden, KeyFile
from farm.gateway.signed_urls import Links, Signer, secret_of
from farm.settings import GatewaySettings
from farm.sinks.protocol import Source
from farm.store import Store

KEYS = {
    "alice": {"tenant": "alice", "expires": "2999-01-01T00:00:00Z"},
    "bob": {"tenant": "bob"},
    "old": {"tenant": "alice", "expires": "2020-01-01T00:00:00Z"},
    "reader": {"tenant": "alice", "scopes": ["read"]},
}


@pytest.fixture
def locked(start: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Gateway:
    monkeypatch.setattr("farm.gateway.auth.RECHECK_SECONDS", 0.0)
    return start(keys=write_keys(tmp_path / "keys.json", KEYS), open=False)


@pytest.mark.parametrize(
    ("key", "status"), [("alice", 200), ("old", 401), ("unknown", 401), (None, 401), ("", 401)]
)
def test_only_a_living_key_opens(locked: Gateway, key: str | None, status: int) -> None:
    with locked.client(key) as http:
        answer = http.get("/v1/jobs")
        assert answer.status_code == status
        if status == 401:
            assert answer.json()["error"]["code"] == "not_allowed"
            assert answer.headers["www-authenticate"] == "Bearer"


def test_a_key_without_the_scope_may_look_and_not_touch(locked: Gateway) -> None:
    with locked.client("reader") as http:
        assert http.get("/v1/jobs").status_code == 200
        answer = post(http, {"prompt": "x"})
        assert answer.status_code == 403
        assert "write" in answer.json()["error"]["message"]


def test_another_tenants_things_are_not_there(locked: Gateway) -> None:
    with locked.client("alice") as alice, locked.client("bob") as bob:
        job = post(alice, {"prompt": "x"}).json()["id"]
        asset = alice.put("/v1/assets", content=png(colour=(1, 2, 3))).json()["id"]
        unknown = bob.get("/v1/jobs/j0-01m848b6zxgnjbpp0f506dqmht").json()["error"]["message"]
        for path in (f"/v1/jobs/{job}", f"/v1/jobs/{job}/images", f"/v1/jobs/{job}/events"):
            answer = bob.get(path)
            assert answer.status_code == 404
            shown = answer.json()["error"]["message"]
            assert shown.replace(job, "") == unknown.replace("j0-01m848b6zxgnjbpp0f506dqmht", "")
        assert bob.post(f"/v1/jobs/{job}/cancel").status_code == 404
        assert bob.post(f"/v1/jobs/{job}/close", params={"pieces": 0}).status_code == 404
        assert bob.get(f"/v1/assets/{asset}").status_code == 404
        assert post(bob, {"prompt": "x", "image": asset}).status_code == 404
        assert bob.get("/v1/jobs").json()["jobs"] == []
        assert post(alice, {"prompt": "x"}, idempotency_key="k").status_code == 201
        assert post(bob, {"prompt": "y"}, idempotency_key="k").status_code == 201


def test_a_revoked_key_stops_and_a_broken_file_locks_nobody_out(
    locked: Gateway, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "keys.json"
    with locked.client("alice") as alice, locked.client("bob") as bob:
        path.write_text("{")
        assert [alice.get("/v1/jobs").status_code for _ in range(2)] == [200, 200]
        told = [one.getMessage() for one in caplog.records if str(path) in one.getMessage()]
        assert len(told) == 1
        assert "Invalid JSON" in told[0]
        path.unlink()
        assert alice.get("/v1/jobs").status_code == 200
        write_keys(path, {"bob": KEYS["bob"]})
        assert alice.get("/v1/jobs").status_code == 401
        assert bob.get("/v1/jobs").status_code == 200


def test_a_revoked_key_hears_no_more_of_its_job(locked: Gateway, tmp_path: Path) -> None:
    with locked.client("alice") as alice:
        job = post(alice, {"prompt": "x"}).json()["id"]
        with alice.stream("GET", f"/v1/jobs/{job}/events") as answer:
            lines = answer.iter_lines()
            assert '"queued"' in next(line for line in lines if line.startswith("data: "))
            write_keys(tmp_path / "keys.json", {"bob": KEYS["bob"]})
            assert not any(line.startswith("event: ") for line in lines)


def test_on_an_open_farm_a_wrong_key_is_still_wrong(gateway: Gateway) -> None:
    with gateway.client("wrong") as http:
        assert http.get("/v1/jobs").status_code == 401


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "localhost:1"}, 200),
        ({"Host": "127.0.0.1"}, 200),
        ({"Host": "[::1]:8400"}, 200),
        ({"Host": "evil.example"}, 403),
        ({"Host": "127.0.0.1.evil.example"}, 403),
        ({"Host": "169.254.169.254"}, 403),
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Host": "localhost:1", "Origin": "http://localhost:1"}, 200),
        ({"Host": "localhost:1", "Origin": "http://localhost:2"}, 403),
        ({"Host": "["}, 403),
        ({"Host": "]"}, 403),
        ({"Host": "[::1"}, 403),
        ({"Host": "localhost:port"}, 403),
        ({"Host": "evil.example/?@localhost"}, 403),
        ({"Origin": "http://["}, 403),
        ({"Origin": "["}, 403),
        ({"Origin": ""}, 403),
    ],
)
def test_a_page_of_a_stranger_cannot_use_an_open_farm(
    http: httpx2.Client, headers: dict[str, str], status: int
) -> None:
    assert http.get("/v1/jobs", headers=headers).status_code == status


def test_a_farm_that_nobody_could_call_does_not_start(tmp_path: Path, redis_url: str) -> None:
    settings = GatewaySettings.model_validate({"data": tmp_path, "redis_url": redis_url})
    with pytest.raises(InvalidInput) as error:
        create_app(settings)
    assert error.value.field == "FARM_KEYS"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{", "Invalid JSON"),
        ("[]", "must be an object"),
        ('{"DIGEST": {"expires": null}}', "tenant of the key abababab…: Field required"),
        ('{"DIGEST": {"tenant": 7}}', "tenant of the key abababab…: must be a valid string"),
        ('{"DIGEST": {"tenant": ""}}', "tenant of the key abababab…: "),
        ('{"DIGEST": {"tenant": "a", "expire": "2020-01-01T00:00:00Z"}}', "expire of the key"),
        ('{"DIGEST": {"tenant": "a", "expires": "2020-01-01"}}', "expires of the key"),
        ('{"DIGEST": {"tenant": "a", "scopes": ["reed"]}}', "scopes.0 of the key"),
        ('{"secret": {"tenant": "a", "expire": 1}}', "a key is named by its sha256"),
    ],
)
def test_a_wrong_keys_file_stops_the_start(
    tmp_path: Path, redis_url: str, text: str, told: str
) -> None:
    (tmp_path / "keys").write_text(text.replace("DIGEST", "ab" * 32))
    settings = GatewaySettings.model_validate(
        {"data": tmp_path, "redis_url": redis_url, "keys": tmp_path / "keys"}
    )
    with pytest.raises(InvalidInput, match=re.escape(told)) as error:
        create_app(settings)
    assert error.value.field == "FARM_KEYS"
    assert "secret" not in error.value.message


def test_a_keys_digest_may_be_in_capitals_and_have_a_note(tmp_path: Path) -> None:
    path = write_keys(tmp_path / "keys", {"k": {"tenant": "ann", "note": "the laptop"}})
    path.write_text(
        path.read_text().replace(digest := hashlib.sha256(b"k").hexdigest(), digest.upper())
    )
    found = KeyFile(path).find("k")
    assert found is not None
    assert found.tenant == "ann"


def test_a_signed_address_opens_one_object_for_a_while(gateway: Gateway) -> None:
    gateway.store.put("some/picture.png", png())
    now = [time.time()]
    secret = b"s"
    signer = Signer(secret, lambda: now[0])
    path = signer.path("some/picture.png", seconds=60, filename="a.png")
    query = httpx2.URL(path).params
    facts = (int(query["expires"]), query["filename"], query["signature"])
    signer.check("some/picture.png", *facts)
    for wrong in (
        ("some/other.png", *facts),
        ("some/picture.png", facts[0] + 1, *facts[1:]),
        ("some/picture.png", facts[0], "b.png", facts[2]),
        ("some/picture.png", facts[0], facts[1], "é"),
    ):
        with pytest.raises(Exception, match="not signed"):
            signer.check(*wrong)
    now[0] += 61
    with pytest.raises(Exception, match="expired"):
        signer.check("some/picture.png", *facts)


def test_an_address_is_the_same_for_a_minute_and_lives_no_longer_than_is_said() -> None:
    now = [60_000.0]
    signer = Signer(b"s", lambda: now[0])

    def ask() -> str:
        return signer.path("a.png", seconds=3600, filename="a.png")

    first = ask()
    assert int(httpx2.URL(first).params["expires"]) == 63_600
    now[0] += 59
    assert ask() == first
    now[0] += 1
    assert ask() != first


def test_a_link_into_the_store_is_made_once_a_minute() -> None:
    now, made = [60_000.0], []

    def signed_url(key: str, *, seconds: int, filename: str) -> str:
        made.append(key)
        return f"https://store/{key}?made={len(made)}"

    store = cast(Store, SimpleNamespace(signed_url=signed_url))
    links = Links(store, Signer(b"s", lambda: now[0]), seconds=3600)
    source = Source(key="a.png", name="a.png", size=1)
    assert links.to(source) == links.to(source) == "https://store/a.png?made=1"
    now[0] += 60
    assert links.to(source) == "https://store/a.png?made=2"


def test_a_browser_may_keep_a_picture_for_as_long_as_its_address_lives(gateway: Gateway) -> None:
    gateway.store.put("some/picture.png", png())
    path = gateway.app_deps.signer.path("some/picture.png", seconds=100, filename="a.png")
    with gateway.client() as http:
        told = http.get(path).headers["cache-control"]
    age = re.fullmatch(r"private, max-age=(\d+), immutable", told)
    assert age is not None
    assert 0 < int(age[1]) <= 100


def test_a_host_header_does_not_let_another_machine_into_an_open_farm() -> None:
    door = Authenticator(None, without_keys=True, now=lambda: datetime.now(UTC))
    door.check_page("localhost", None, "127.0.0.1")
    door.check_page("localhost", None, None)
    for address in ("10.0.0.7", "::ffff:10.0.0.7", "unknown"):
        with pytest.raises(Forbidden, match="only its own machine"):
            door.check_page("localhost", None, address)


@pytest.mark.parametrize("host", ["[", "http://[", "x:y"])
def test_a_malformed_host_is_no_failure_where_keys_are_asked_for(
    locked: Gateway, host: str
) -> None:
    with locked.client("alice") as http:
        assert http.get("/v1/jobs", headers={"Host": host}).status_code == 200
        assert http.get("/nothing", headers={"Host": host}).status_code == 404
        assert http.get("/v1/jobs/", headers={"Host": host}).status_code == 404
        assert http.delete("/v1/jobs", headers={"Host": host}).status_code == 405


def test_the_link_to_a_part_opens_that_part_alone() -> None:
    signer = Signer(b"secret", now=lambda: 1000.0)
    part, name = "1536+40961", "00000000-00.png"
    path = signer.path("a/shard.tar", seconds=10, filename=name, part=part)
    query = dict(parse_qsl(path.partition("?")[2]))
    expires, signature = int(query["expires"]), query["signature"]
    signer.check("a/shard.tar", expires, name, signature, part)
    with pytest.raises(NotAllowed, match="not signed"):
        signer.check("a/shard.tar", expires, f"{name}\n{part}", signature)


def test_a_secret_is_on_the_disk_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a power cut it could be an empty file, with which anyone can sign."""
    told: list[tuple[str, int]] = []
    link, fsync = os.link, os.fsync

    def noted(file: int) -> None:
        fsync(file)
        told.append(("on the disk", os.fstat(file).st_size))

    def named(draft: Path, path: Path) -> None:
        told.append(("named", draft.stat().st_size))
        link(draft, path)

    monkeypatch.setattr(os, "fsync", noted)
    monkeypatch.setattr(os, "link", named)
    secret = secret_of(tmp_path)
    assert told == [("on the disk", len(secret)), ("named", len(secret))]
    assert secret_of(tmp_path) == secret
