"""How the farm's processes log: lines for people, or JSON lines for machines (``FARM_LOG_FORMAT``).

What users have written may stand in a message, so nothing in it can begin a line or move a
terminal's cursor. Facts about a line (``job``, ``task``, ``session``, ``worker``) go into
``extra``; the id of the request that is being answered is added by itself.
"""

import contextlib
import contextvars
import json
import logging
import os
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Any

from farm.errors import InvalidInput

FACTS = ("job", "task", "session", "worker", "request")
FILE_BYTES = 10 * 2**20  # of a log file; one older file is kept
VARIABLE = "FARM_LOG_FORMAT"

_request: contextvars.ContextVar[str | None] = contextvars.ContextVar("request", default=None)


def configure(process: str, *, level: int = logging.INFO, file: Path | None = None) -> None:
    """Log to stderr, and to a file as well if one is named and can be written.

    Args:
        process: what this process is, in each line: ``gateway``, ``worker-0``.
        level: of the least important lines.
        file: grows to ``FILE_BYTES``, then begins again.

    Raises:
        InvalidInput: the variable names another format.
    """
    chosen = os.environ.get(VARIABLE, "text") or "text"
    if chosen not in ("text", "json"):
        raise InvalidInput(
            f"{chosen[:40]!r} is not a format of logs", field=VARIABLE, hint="text or json"
        )
    formatter = JsonLines(process) if chosen == "json" else TextLines(process)
    handlers: list[logging.Handler] = [logging.StreamHandler(sys.stderr)]
    if file is not None:
        with contextlib.suppress(OSError):  # the folder is on the machine of ``farm up``
            handlers.append(RotatingFileHandler(file, maxBytes=FILE_BYTES, backupCount=1))
    for handler in handlers:
        handler.setFormatter(formatter)
    logging.basicConfig(level=level, handlers=handlers, force=True)


@contextlib.contextmanager
def request(number: str) -> Iterator[None]:
    """Lines that are written meanwhile, in threads that are asked for it too, carry the id."""
    token = _request.set(number)
    try:
        yield
    finally:
        _request.reset(token)


class TextLines(logging.Formatter):
    """``time level process message``; the lines of a traceback follow it, indented."""

    def __init__(self, process: str) -> None:
        super().__init__("%(asctime)s %(levelname)s %(process_name)s %(message)s")
        self._process = process

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        number = _request.get()
        record.process_name = self._process
        record.message = printable(record.message) + (f" (request {number})" if number else "")
        return super().formatMessage(record)

    def formatException(self, ei: Any) -> str:  # noqa: N802
        """An error's message may be what a user wrote, too."""
        lines = super().formatException(ei).split("\n")
        return "\n".join(f"  {printable(line)}" for line in lines)


class JsonLines(logging.Formatter):
    """One JSON object in a line."""

    def __init__(self, process: str) -> None:
        super().__init__()
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        facts = {name: getattr(record, name, None) for name in FACTS}
        facts["request"] = facts["request"] or _request.get()
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "process": self._process,
            "logger": record.name,
            "message": record.getMessage(),
            **{name: str(value) for name, value in facts.items() if value is not None},
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line)


def printable(text: str) -> str:
    """The text in one line: what a terminal would act on is written as in Python's strings."""
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode() for char in text
    )
