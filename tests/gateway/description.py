"""Compares the gateway's answers with its own description."""

import functools
import json
import re
import tempfile
from typing import Any

import httpx2
import jsonschema

from farm.gateway.app import create_app
from farm.settings import GatewaySettings


@functools.cache
def described() -> dict[str, Any]:
    """What every gateway has at ``/openapi.json``."""
    with tempfile.TemporaryDirectory() as folder:
        given = {"data": folder, "open": True, "redis_url": f"unix://{folder}/none"}
        return create_app(GatewaySettings.model_validate(given)).openapi()


@functools.cache
def _patterns() -> list[tuple[re.Pattern[str], dict[str, Any]]]:
    """Paths and their methods; those with fewer parameters first, since others match them, too."""
    paths = sorted(described()["paths"].items(), key=lambda item: item[0].count("{"))
    return [(re.compile(re.sub(r"{\w+}", "[^/]+", path)), methods) for path, methods in paths]


def check_answer(answer: httpx2.Response) -> None:
    """For a client's hook: fails where JSON has another shape than the description says."""
    if answer.headers.get("content-type") != "application/json":
        return
    request = answer.request
    found = (methods for path, methods in _patterns() if path.fullmatch(request.url.path))
    operation = next(found, {}).get(request.method.lower())
    if operation is None:
        return
    told = operation["responses"]
    status = str(answer.status_code)
    content = (told.get(status) or told[f"{status[0]}XX"])["content"]
    schema = {**content["application/json"]["schema"], "components": described()["components"]}
    jsonschema.validate(json.loads(answer.read()), schema)
