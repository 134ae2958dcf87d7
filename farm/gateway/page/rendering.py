"""Turns templates into answers, and gives the browser its files."""

import hashlib
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from fastapi import Request
from jinja2 import Environment, PackageLoader, StrictUndefined
from starlette.responses import HTMLResponse

import farm
from farm.gateway.page.charts import bar, sparkline
from farm.gateway.signed_urls import media_type

_STATIC = Path(__file__).parent / "static"
_SECOND, _MINUTE, _HOUR, _DAY = 1, 60, 3600, 86_400


class StaticFile(NamedTuple):
    """A file that the page loads; its address changes with its content."""

    content: bytes
    media_type: str
    version: str  # the first digits of its sha256


def _load() -> dict[str, StaticFile]:
    return {
        path.name: StaticFile(
            content := path.read_bytes(),
            media_type(path.name),
            hashlib.sha256(content).hexdigest()[:16],
        )
        for path in sorted(_STATIC.iterdir())
    }


STATIC = _load()


def age(moment: datetime | None, now: datetime | None = None) -> str:
    """How long ago, in the largest unit that fits."""
    if moment is None:
        return ""
    return duration(((now or datetime.now(UTC)) - moment).total_seconds())


def duration(seconds: float) -> str:
    for size, unit in ((_DAY, "d"), (_HOUR, "h"), (_MINUTE, "min")):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"


_ENVIRONMENT = Environment(
    loader=PackageLoader("farm.gateway.page"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_ENVIRONMENT.filters |= {"age": age, "duration": duration, "thousands": "{:,}".format}
_ENVIRONMENT.globals |= {"bar": bar, "sparkline": sparkline}


def fragment(request: Request, template: str, **facts: Any) -> HTMLResponse:
    """A part of the page; it is never cached, since it shows one caller's data of this moment."""
    return HTMLResponse(_render(request, template, facts), headers={"Cache-Control": "no-store"})


def shell(request: Request, picture_url: str) -> HTMLResponse:
    """The page without anyone's data: the browser fetches what it shows with the caller's key.

    ``picture_url`` is an address of the kind that pictures have; its origin may show pictures.
    """
    path = str(request.scope["path"]).removeprefix(root_of(request))
    content = _render(
        request, "shell.html", {"path": "" if path == "/" else path, "version": farm.__version__}
    )
    headers = {"Content-Security-Policy": policy(picture_url), "Referrer-Policy": "no-referrer"}
    return HTMLResponse(content, headers=headers)


def policy(picture_url: str) -> str:
    parts = urlsplit(picture_url)
    pictures = f" {parts.scheme}://{parts.netloc}" if parts.netloc else ""
    return (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
        f"img-src 'self' blob: data:{pictures}; form-action 'none'; base-uri 'none'; "
        "frame-ancestors 'none'"
    )


def root_of(request: Request) -> str:
    """The prefix at which a reverse proxy shows the farm."""
    return str(request.scope.get("root_path", "")).rstrip("/")


def _render(request: Request, template: str, facts: dict[str, Any]) -> str:
    root = root_of(request)

    def static(name: str) -> str:
        return f"{root}/static/{name}?v={STATIC[name].version}"

    return _ENVIRONMENT.get_template(template).render(root=root, static=static, **facts)
