"""JSON as it is written down: no NaN, no key twice, no endless nesting; errors say where."""

import json
import operator
import re
from collections.abc import Sequence
from typing import Any, NoReturn

from farm.errors import InvalidInput

MAX_DEPTH = 32

# A string that never ends is one match too, so the search stays linear for any text.
_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*+(?:"|\\?\Z)|-?Infinity|NaN', re.DOTALL)


class _Duplicate(ValueError):
    pass


class _Constant(ValueError):
    pass


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen = set()
        for key, _ in pairs:
            if key in seen:
                raise _Duplicate(key)
            seen.add(key)
    return found


def _refuse_constant(name: str) -> NoReturn:
    raise _Constant(name)


_DECODER = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_refuse_constant)


def loads(text: str, *, line: int | None = None) -> Any:
    """The value of one JSON text.

    Args:
        line: number of the text's first line in its file; errors then carry line and column.

    Raises:
        InvalidInput: it is not JSON, or JSON that readers disagree on.
    """
    start = len(text) - len(text.lstrip(" \t\r\n"))
    value, end = decode(text, start, line=line)
    rest = text[end:].lstrip(" \t\r\n")
    if rest:
        at = len(text) - len(rest)
        raise _error(f"unexpected text after the value: {rest[:20]!r}", text, at, line)
    return value


def decode(text: str, start: int, *, line: int | None = None) -> tuple[Any, int]:
    """The value that starts at ``start``, and the place after it."""
    try:
        value, end = _DECODER.raw_decode(text, start)
    except json.JSONDecodeError as error:
        message, at = error.msg, error.pos
        before = text[:at].rstrip()
        if before.endswith(",") and text[at : at + 1] in ("}", "]"):
            message, at = "a comma with nothing after it; remove it", len(before) - 1
        elif text[at : at + 1] == "'":
            message = "single quotes; JSON strings are in double quotes"
        raise _error(f"is not JSON: {message}", text, at, line) from None
    except _Duplicate as error:
        key = str(error)
        spellings = {re.escape(json.dumps(key, ensure_ascii=ascii_)) for ascii_ in (True, False)}
        places = list(re.finditer(f"(?:{'|'.join(spellings)})\\s*:", text[start:]))
        at = start + (places[1].start() if len(places) > 1 else 0)
        raise _error(f"the key {key[:60]!r} appears twice in one object", text, at, line) from None
    except _Constant as error:
        at = next((m.start() for m in _TOKEN.finditer(text, start) if m[0] == str(error)), start)
        raise _error(f"{error} is not a JSON number", text, at, line) from None
    except RecursionError:
        raise _error("is nested too deeply", text, start, line) from None
    except ValueError as error:  # an integer of more than 4,300 digits
        raise _error(f"is not JSON: {error}"[:120], text, start, line) from None
    # Looking at every value takes longer than reading them, and few texts can be that deep.
    openings = text.count("{", start, end) + text.count("[", start, end)
    if openings > MAX_DEPTH and _too_deep(value):
        raise _error(f"is nested more than {MAX_DEPTH} levels deep", text, start, line)
    return value, end


def objects(lines: Sequence[str]) -> list[dict[str, Any]] | None:
    """The values of lines that are one object each, with no object in it; they are read together.

    None says nothing of what is wrong: ``loads`` of each line does. As one array, with a line's end
    between them, texts could be read that are not good alone. But no string holds a line's end,
    within an object no ``{`` follows a comma, and within a list it would begin an object in an
    object. So where every line begins with ``{`` and no object is in another, each line is whole.

    Args:
        lines: texts without line feeds.
    """
    found: list[dict[str, Any]] = []

    def kept(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found.append(_unique(pairs))
        return found[-1]

    decoder = json.JSONDecoder(object_pairs_hook=kept, parse_constant=_refuse_constant)
    text = "[" + ",\n".join(lines) + "]"
    if text.count("\n{") != len(lines) - 1 or not text.startswith("[{"):
        return None
    try:
        values: list[Any] = decoder.decode(text)
    except (ValueError, RecursionError):
        return None
    alone = len(values) == len(found) == len(lines) and all(map(operator.is_, values, found))
    deep = text.count("[") > MAX_DEPTH and any(map(_too_deep, found))
    return found if alone and not deep else None


def _too_deep(value: Any) -> bool:
    """Layer by layer: recursion would fail on deep nesting."""
    layer = [value] if isinstance(value, dict | list) else []
    for _ in range(MAX_DEPTH):
        layer = [
            inner
            for outer in layer
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, dict | list)
        ]
        if not layer:
            return False
    return True


def _error(message: str, text: str, at: int, line: int | None) -> InvalidInput:
    before = text[:at]
    column = at - (before.rfind("\n") + 1) + 1
    lines = before.count("\n")
    if line is None:
        where = f"line {lines + 1}, column {column}" if lines else f"column {column}"
        return InvalidInput(f"{message} ({where})", field="json")
    return InvalidInput(message, field="json", line=line + lines, column=column)
