"""``farm dashboard``: a link that opens Ray's dashboard without its token being copied by hand."""

import http.server
import json
import secrets
import webbrowser
from http import HTTPStatus
from typing import Annotated

import typer

from farm.cli.arguments import FarmData
from farm.cli.output import say, say_error
from farm.errors import TimedOut, Unavailable
from farm.paths import data_dir

COOKIE = "ray-authentication-token"  # of Ray's dashboard
WAIT_SECONDS = 300.0


def dashboard(
    data: FarmData = None,
    browser: Annotated[bool, typer.Option("--open", help="Open it in the browser here.")] = False,
) -> None:
    """Print a link that opens Ray's dashboard of the farm on this machine, logged in. It works
    once, within five minutes, and only here."""
    from farm.local.embedded import RAY_FILE

    folder = (data or data_dir()).expanduser().absolute()
    try:
        health = json.loads((folder / "run" / RAY_FILE).read_text())["gcs_server"]
        token = (folder / "run" / "ray-token").read_text().strip()
    except (OSError, KeyError, ValueError):
        raise Unavailable(
            f"no Ray of a farm runs in {folder}", hint="farm up starts one; --data names its folder"
        ) from None
    with Login(health.removesuffix("/api/gcs_healthz"), token) as login:
        say(login.link)
        if browser:
            webbrowser.open(login.link)
        login.wait(WAIT_SECONDS)
    say_error("logged in")


class Login(http.server.HTTPServer):
    """Answers at a secret address with the dashboard's cookie, once.

    Browsers keep cookies by host and not by port, so what is set here is sent to the dashboard.
    """

    def __init__(self, target: str, token: str) -> None:
        self.target, self.token = target, token
        self.path = f"/{secrets.token_urlsafe(24)}"
        self.used = False
        super().__init__(("127.0.0.1", 0), _Answer)

    @property
    def link(self) -> str:
        return f"http://127.0.0.1:{self.server_port}{self.path}"

    def wait(self, seconds: float) -> None:
        """Serve until the link was used; raises ``TimedOut`` if nothing comes for so long."""
        self.timeout = seconds
        while not self.used:
            self.handle_request()

    def handle_timeout(self) -> None:
        raise TimedOut("the link was not opened", hint="call farm dashboard again")


class _Answer(http.server.BaseHTTPRequestHandler):
    server: Login
    timeout = 10.0  # of a caller that says nothing

    def do_GET(self) -> None:
        if not secrets.compare_digest(self.path.encode(), self.server.path.encode()):
            self.send_error(HTTPStatus.NOT_FOUND)
            return
        self.send_response(HTTPStatus.FOUND)
        self.send_header("Location", self.server.target)
        cookie = f"{COOKIE}={self.server.token}; Path=/; HttpOnly; SameSite=Strict"
        self.send_header("Set-Cookie", cookie)
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        self.server.used = True

    def log_message(self, *_: object) -> None:
        """The path is a secret."""
