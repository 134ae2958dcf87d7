"""The link of ``farm dashboard``."""

import http.client
import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from farm.cli.app import run
from farm.cli.dashboard import Login
from farm.errors import TimedOut


@pytest.fixture
def login() -> Iterator[Login]:
    with Login("http://127.0.0.1:8265", "a-token") as login:
        yield login


def get(login: Login, path: str) -> http.client.HTTPResponse:
    connection = http.client.HTTPConnection("127.0.0.1", login.server_port, timeout=30)
    connection.request("GET", path)
    answer = connection.getresponse()
    answer.read()
    connection.close()
    return answer


def test_the_link_sets_the_dashboards_cookie_and_leads_there(login: Login) -> None:
    serving = threading.Thread(target=login.wait, args=(60.0,))
    serving.start()
    path = login.link.removeprefix(f"http://127.0.0.1:{login.server_port}")
    for wrong in ("/", path[:-1], path + "x"):
        assert get(login, wrong).status == 404
        assert get(login, wrong).headers["Set-Cookie"] is None
    answer = get(login, path)
    assert answer.status == 302
    assert answer.headers["Location"] == "http://127.0.0.1:8265"
    cookie = answer.headers["Set-Cookie"]
    assert cookie.startswith("ray-authentication-token=a-token;")
    assert "HttpOnly" in cookie
    serving.join(30)
    assert not serving.is_alive()


def test_a_link_that_is_not_opened_ends(login: Login) -> None:
    with pytest.raises(TimedOut):
        login.wait(0.01)


def test_without_a_farm_it_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "ray-token").write_text("left over")
    assert run(["dashboard", "--data", str(tmp_path)]) == 5
    assert "no Ray of a farm runs in" in capsys.readouterr().err
    (tmp_path / "run" / "ray.json").write_text(json.dumps({}))
    assert run(["dashboard", "--data", str(tmp_path)]) == 5
