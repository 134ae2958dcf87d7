"""Jobs and pictures as a notebook shows them: HTML that needs nothing from outside."""

import base64
from collections.abc import Iterable
from html import escape

from farm_client.models import JobStatus

_SIGNATURES = {b"\x89PNG": "image/png", b"\xff\xd8\xff": "image/jpeg", b"RIFF": "image/webp"}


def media_type(data: bytes) -> str | None:
    """Of a picture's file; None for tokens."""
    return next((kind for start, kind in _SIGNATURES.items() if data.startswith(start)), None)


def figure(data: bytes | None, caption: str, trouble: str = "") -> str:
    """A picture with what is to be said of it; without a picture, why there is none."""
    kind = None if data is None else media_type(data)
    shown = f"<em>{escape(trouble or 'tokens')}</em>"
    if data is not None and kind is not None:
        shown = (
            f'<img style="max-width:100%" alt="{escape(caption)}" '
            f'src="data:{kind};base64,{base64.b64encode(data).decode()}">'
        )
    return (
        '<figure style="display:inline-block;margin:4px;max-width:160px;vertical-align:top">'
        f'{shown}<figcaption style="font-size:small">{escape(caption)}</figcaption></figure>'
    )


def job(status: JobStatus, figures: Iterable[str]) -> str:
    """A job: its state in a line, and some of its pictures."""
    images = status.images
    line = f"{status.name or status.id}: {status.state}, {images.finished} of {images.total}"
    failed = f", {images.failed} failed" if images.failed else ""
    return f"<p><strong>{escape(line + failed)}</strong></p><div>{''.join(figures)}</div>"
