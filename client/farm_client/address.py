"""Where the farm is, and the key to it."""

import json
import os
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from farm.addresses import is_loopback
from farm.errors import InvalidInput
from farm.paths import client_file

DEFAULT_URL = "http://127.0.0.1:8400"


class Address(NamedTuple):
    url: str  # without a slash at the end
    api_key: str | None

    def __repr__(self) -> str:
        """Without the key: it would be in logs and in reports of errors."""
        return f"<{type(self).__name__} {self.url}>"

    @property
    def local(self) -> bool:
        """On this machine: no proxy of the environment stands in between."""
        return is_loopback(urlsplit(self.url).hostname or "")


def find_address(
    url: str | None = None, api_key: str | None = None, *, data: Path | None = None
) -> Address:
    """What was given, else ``FARM_URL`` and ``FARM_API_KEY``, else what ``farm up`` wrote down in
    the data folder, else the port where a farm of this machine listens."""
    url = url or os.environ.get("FARM_URL")
    api_key = api_key or os.environ.get("FARM_API_KEY")
    if not url:
        known = known_farm(data)
        url = known.get("url") or DEFAULT_URL
        api_key = api_key or known.get("api_key")
    return Address(check_url(url), api_key or None)


def check_url(url: str) -> str:
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
        good = good and not any(character.isspace() for character in url)
        (parts.hostname or "").encode("idna")
    except ValueError:
        good = False
    if not good:
        raise InvalidInput(
            f"{url[:100]!r} is not a farm's address",
            field="url",
            hint=f"write it like {DEFAULT_URL}",
        )
    if "@" in parts.netloc:
        raise InvalidInput(
            "the address has a user name in it", field="url", hint="the key belongs in FARM_API_KEY"
        )
    return url.rstrip("/")


def known_farm(data: Path | None = None) -> dict[str, Any]:
    """What ``farm up`` wrote down of the farm that runs in the data folder."""
    try:
        found = json.loads(client_file(data).read_text("utf-8"))
    except (OSError, ValueError, InvalidInput):
        return {}
    return found if isinstance(found, dict) else {}
