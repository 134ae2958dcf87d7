"""The API's description beyond what FastAPI finds in the routes: bodies that they read themselves,
streams, refusals and keys."""

import itertools
from collections.abc import Iterator
from typing import Annotated, Any

from fastapi import FastAPI
from fastapi.routing import APIRoute
from fastapi.security import HTTPBearer
from pydantic import BaseModel, Field
from pydantic.json_schema import models_json_schema

from farm.formats.scores import MAX_SCORES, PictureScores
from farm.gateway.answers import Refusal
from farm.job import MAX_PIECE_LINES, OPTIONS, JobOptions
from farm.spec import PARAMETERS, RenderRequest

_REF = "#/components/schemas/{model}"

# Read by ``Authenticator``, which knows farms without keys; here so that it is described.
BEARER = HTTPBearer(auto_error=False, description="An API key; a farm without keys takes none.")


class Render(RenderRequest):
    """A render; files are named by the sha256 of an upload, pictures also given as data URLs."""

    id: str | int | None = None
    metadata: dict[str, Any] = Field({}, description="Kept, and told with each picture.")


class NewJob(JobOptions):
    """Renders, and how they are run and stored."""

    renders: Annotated[list[Render], Field(min_length=1, max_length=MAX_PIECE_LINES)]


class NewScores(BaseModel):
    rows: Annotated[list[PictureScores], Field(max_length=MAX_SCORES)]


def _body(**kinds: Any) -> dict[str, Any]:
    return {"requestBody": {"required": True, "content": kinds}}


def _lines_of(what: str, example: str) -> dict[str, Any]:
    return {"schema": {"type": "string", "description": what}, "example": example}


_RENDERS = _lines_of(
    "A `Render` as JSON on each line; other columns are kept as metadata",
    '{"prompt": "a red circle"}\n{"prompt": "a blue square"}\n',
)
_NEW_JOB = {
    "schema": {"$ref": _REF.format(model="NewJob")},
    "example": {"renders": [{"prompt": "a red circle", "seed": 7}], "name": "circles"},
}
NDJSON_RENDERS = _body(**{"application/x-ndjson": _RENDERS})
FILE = _body(**{"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}})
SCORES = _body(**{"application/json": {"schema": {"$ref": _REF.format(model="NewScores")}}})


def ndjson(each: str, last: str) -> dict[int | str, dict[str, Any]]:
    """An answer by lines: many with the key ``each``, one with ``last`` at the end."""
    told = f"JSON on each line: `{each}` each time, one `{last}` at the end, or `error` instead"
    return {200: {"content": {"application/x-ndjson": {"schema": _text(told)}}}}


def _text(told: str) -> dict[str, Any]:
    return {"type": "string", "description": told}


def _parameter(name: str, schema: dict[str, Any], *, where: str = "query") -> dict[str, Any]:
    described = {"description": schema.pop("description")}
    return {"name": name, "in": where, "schema": schema, **described}


TEXT: dict[int | str, dict[str, Any]] = {
    200: {"content": {"text/plain": {"schema": _text("Prometheus' format")}}}
}
_EVENTS = "Events `status`, with a `JobStatus`, and `end`"
SSE: dict[int | str, dict[str, Any]] = {
    200: {"content": {"text/event-stream": {"schema": _text(_EVENTS)}}}
}
_BYTES = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
RANGE = {"parameters": [_parameter("Range", _text("A range of bytes"), where="header")]}
OBJECT: dict[int | str, dict[str, Any]] = {
    200: {"description": "The whole", "content": _BYTES},
    206: {"description": "The range", "content": _BYTES},
}
_RETRY_AFTER = {"description": "Seconds, with 429 and 503", "schema": {"type": "integer"}}
REFUSALS: dict[int | str, dict[str, Any]] = {
    "4XX": {
        "model": Refusal,
        "description": "It is refused; a 429 may succeed later",
        "headers": {"Retry-After": _RETRY_AFTER},
    },
    "5XX": {
        "model": Refusal,
        "description": "The farm cannot do it now; 503 may succeed later",
        "headers": {"Retry-After": _RETRY_AFTER},
    },
}


def _submission() -> dict[str, Any]:
    """``POST /v1/jobs``: the options of a job are its query's, too."""
    told = _schemas([JobOptions])
    options = told["JobOptions"]["properties"]
    for schema in options.values():
        # A client that sent the default would overrule what the body says.
        schema.pop("default")
        if wanted := schema.pop("anyOf", None):  # left out rather than null
            schema |= wanted[0]
    options["open"] = {"type": "boolean", "description": "The renders come in pieces."}
    options["on_error"] = {
        "type": "string",
        "enum": ["skip", "stop"],
        "description": "With stop, one refused render refuses all.",
    }
    key = _parameter("Idempotency-Key", options.pop("idempotency_key"), where="header")
    body = _body(**{"application/json": _NEW_JOB, "application/x-ndjson": _RENDERS})
    return {"parameters": [key, *itertools.starmap(_parameter, options.items())], **body}


def _schemas(models: list[type[BaseModel]]) -> dict[str, Any]:
    """Of models and what they are made of, by name, with each parameter's help."""
    _, told = models_json_schema([(one, "validation") for one in models], ref_template=_REF)
    found: dict[str, Any] = told["$defs"]
    for model, schema in found.items():
        parameters = PARAMETERS if model == "Render" else OPTIONS
        for name, field in schema.get("properties", {}).items():
            if parameter := parameters.get(name):
                field["description"] = f"{parameter.help}."
            for part in _parts(field):
                # Pydantic's own words, where a validator comes first.
                for limit, word in (("ge", "minimum"), ("le", "maximum")):
                    if limit in part:
                        part[word] = part.pop(limit)
    return found


def _parts(schema: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield schema
    yield from schema.get("anyOf", ())


SUBMISSION = _submission()


class Api(FastAPI):
    """FastAPI with the bodies of requests in its description."""

    def openapi(self) -> dict[str, Any]:
        if self.openapi_schema is None:
            told = super().openapi()
            told["components"]["schemas"] |= _schemas([NewJob, NewScores])
        return super().openapi()


def operation_id(route: APIRoute) -> str:
    """The function's name: what generated clients call it."""
    return route.name


def in_words(schema: dict[str, Any]) -> str:
    """The type of a value for people: ``list of Image``, ``integer or null``."""
    if "$ref" in schema:
        return str(schema["$ref"]).rpartition("/")[2]
    if "anyOf" in schema:
        return " or ".join(map(in_words, schema["anyOf"]))
    if "enum" in schema:
        return ", ".join(schema["enum"])
    if "items" in schema:
        return f"list of {in_words(schema['items'])}"
    return str(schema.get("type", "anything"))


def answer_of(operation: dict[str, Any]) -> str:
    """What a call answers where it succeeds, in words."""
    good = next(one for status, one in operation["responses"].items() if status.startswith("2"))
    told = [
        in_words(one["schema"]) if kind == "application/json" else kind
        for kind, one in good.get("content", {}).items()
    ]
    return " or ".join(told) or "nothing"
