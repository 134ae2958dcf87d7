"""Answers of many lines of JSON."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from starlette.responses import StreamingResponse

from farm.errors import FarmError


def json_lines(told: Iterator[Mapping[str, Any]]) -> StreamingResponse:
    """NDJSON, a line for each; an error of the farm is the last one."""
    return StreamingResponse(_lines(told), media_type="application/x-ndjson")


def _lines(told: Iterator[Mapping[str, Any]]) -> Iterator[str]:
    try:
        for one in told:
            yield json.dumps(one) + "\n"
    except FarmError as error:  # the status line has gone out long ago
        yield json.dumps({"error": error.to_dict()}) + "\n"
