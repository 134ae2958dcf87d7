"""The API's description as a page without scripts: it works offline and runs nothing."""

import base64
import hashlib
import json
from collections.abc import Iterator
from html import escape
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import HTMLResponse

from farm.gateway.openapi import answer_of, in_words

router = APIRouter(include_in_schema=False)

_STYLE = (
    "body{font:16px/1.5 sans-serif;max-width:52rem;margin:2rem auto;padding:0 1rem}"
    "code,pre{background:#f2f2f2;padding:.1rem .3rem}pre{padding:.6rem;overflow:auto}"
    "h3{margin-top:2rem;border-top:1px solid #ddd;padding-top:1rem}td{padding-right:1rem}"
)
_HASH = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
POLICY = (
    f"default-src 'none'; style-src 'sha256-{_HASH}'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)


@router.get("/docs", response_class=HTMLResponse)
def page(request: Request) -> HTMLResponse:
    """Every address, its parameters, an example of its body, and the fields of answers."""
    text = "".join(_page(request.app.openapi()))
    return HTMLResponse(text, headers={"Content-Security-Policy": POLICY})


def _page(api: dict[str, Any]) -> Iterator[str]:
    title = escape(f"{api['info']['title']} {api['info']['version']}")
    yield f"<!doctype html><html lang=en><meta charset=utf-8><title>{title}</title>"
    yield f"<style>{_STYLE}</style><h1>{title}</h1>"
    yield f"<p>{escape(api['info'].get('description', ''))} "
    yield "The same for programs: <a href=openapi.json>openapi.json</a>.</p>"
    for path, methods in api["paths"].items():
        for method, facts in methods.items():
            yield f"<h3><code>{method.upper()} {escape(path)}</code></h3>"
            yield f"<p>{escape(facts.get('description', ''))}</p>"
            yield from _parameters(facts.get("parameters", ()))
            yield from _bodies(facts.get("requestBody", {}).get("content", {}))
            yield f"<p>Answer: <code>{escape(answer_of(facts))}</code></p>"
    yield "<h2>Shapes</h2>"
    for name, schema in sorted(api["components"]["schemas"].items()):
        yield f"<h3><code>{escape(name)}</code></h3><p>{escape(schema.get('description', ''))}</p>"
        yield from _fields(schema)


def _parameters(parameters: Any) -> Iterator[str]:
    if not parameters:
        return
    yield "<table>"
    for one in parameters:
        schema = one.get("schema", {})
        kind = in_words(schema)
        needed = "required" if one.get("required") else f"default {schema.get('default', 'none')}"
        yield f"<tr><td><code>{escape(one['name'])}</code><td>in {escape(one['in'])}"
        yield f"<td>{escape(kind)}<td>{escape(needed)}<td>{escape(one.get('description', ''))}"
    yield "</table>"


def _fields(schema: dict[str, Any]) -> Iterator[str]:
    if "enum" in schema:
        yield f"<p>{escape(in_words(schema))}</p>"
    yield "<table>"
    for name, told in schema.get("properties", {}).items():
        yield f"<tr><td><code>{escape(name)}</code><td>{escape(in_words(told))}"
        yield f"<td>{escape(told.get('description', ''))}"
    yield "</table>"


def _bodies(content: dict[str, Any]) -> Iterator[str]:
    for kind, facts in content.items():
        shape = in_words(facts["schema"]) if kind == "application/json" else ""
        yield f"<p>Body: <code>{escape(f'{kind} {shape}'.strip())}</code></p>"
        example = facts.get("example")
        if example is not None:
            text = example if isinstance(example, str) else json.dumps(example, indent=2)
            yield f"<pre>{escape(text)}</pre>"
