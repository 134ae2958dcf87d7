"""What pydantic found wrong, as one line that a user can act on."""

import difflib
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from farm.errors import InvalidInput
from farm.spec.parameter import Form, Parameter

MAX_SHOWN = 60  # characters of a wrong value

ADAPTERS_HINT = 'for example [{"adapter": "outline", "scale": 0.8}]'

_PAIRS = (Form.PAIR, Form.NUMBERS)
_OUTSIDE = ("greater_than_equal", "greater_than", "less_than_equal", "int_type", "int_from_float")


def explain(
    error: ValidationError, data: Mapping[str, Any], parameters: Mapping[str, Parameter]
) -> InvalidInput:
    """The first of pydantic's findings, with its field and a hint."""
    finding = error.errors(include_url=False)[0]
    kind, where = finding["type"], [str(part) for part in finding["loc"]]
    field = where[0] if where else None
    message = finding["msg"].removeprefix("Value error, ").replace("Input should", "must")
    hint = None
    facts = parameters.get(field or "")
    if facts is not None and facts.form is Form.ADAPTERS:
        message, hint = _of_adapters(kind, where[1:], message), ADAPTERS_HINT
        return InvalidInput(message, field=field, hint=hint)
    if field is None:
        named, _, rest = message.partition(": ")
        if rest and named in parameters:
            field, message = named, rest
    elif kind == "extra_forbidden":
        message, hint = "is not a known parameter", _similar(field, parameters)
    elif kind == "string_pattern_mismatch":
        message, hint = "is not an asset id", "upload the file first; its id is its sha256"
    elif kind == "string_type" and field == "prompt" and isinstance(data.get(field), list):
        message, hint = "is one text, not a list", "send one render per prompt"
    elif field in parameters and (kind in _OUTSIDE or parameters[field].form in _PAIRS):
        message, kind = f"must be {parameters[field].wanted}", "limits"
    if kind not in {"value_error", "extra_forbidden"} and field is not None and field in data:
        message += f"; got {_shown(data[field])}"
    return InvalidInput(message, field=field, hint=hint)


def _of_adapters(kind: str, where: list[str], message: str) -> str:
    """Says which of them is wrong, counted from 1, and what of it."""
    if not where:
        return message
    place, inner = int(where[0]) + 1, where[1:]
    if kind == "extra_forbidden":
        return f"number {place} has the unknown key {inner[0][:MAX_SHOWN]!r}"
    if kind == "missing":
        return f"number {place} does not say which adapter"
    if inner and kind != "value_error":
        message = f"{inner[0]} {message}"
    return f"number {place}: {message[0].lower()}{message[1:]}"


def _similar(name: str, parameters: Mapping[str, Parameter]) -> str | None:
    """The parameter that was probably meant: by its name, an alias or the pipelines' name."""
    known = {name: name for name in parameters}
    for parameter, facts in parameters.items():
        for other in (*facts.aliases, *facts.elsewhere, *(facts.pipelines or ())):
            known.setdefault(other, parameter)
    close = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {known[close[0]]!r}?" if close else None


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= MAX_SHOWN else text[: MAX_SHOWN - 3] + "..."
