"""What the commands print: what was asked for on stdout, everything else on stderr."""

import contextlib
import io
import json
import logging
import os
import shlex
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from farm.errors import FarmError

MAX_LISTED = 1000  # refused lines that are shown one by one
TELL_SECONDS = 0.2

_going_on: list[str] = []
_also: list[str] = []
_reached = ""
_counting = False  # a counter stands on the terminal's line


def take_any_text() -> None:
    """What the terminal's encoding does not have is shown as an escape, not refused."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # None where it was closed
            stream.reconfigure(errors="backslashreplace")


def say(text: str) -> None:
    _write(printable(text))


def say_error(text: str) -> None:
    """On a full disk the exit code alone has to tell."""
    _erase_counter()
    with contextlib.suppress(OSError):
        print(printable(text), file=sys.stderr, flush=True)


@contextlib.contextmanager
def fetches_told() -> Iterator[None]:
    """Say meanwhile how far checkpoints are that have to be fetched."""
    log = logging.getLogger("farm.checkpoints")
    level, told = log.level, _Told()
    log.setLevel(logging.INFO)
    log.addHandler(told)
    try:
        yield
    finally:
        log.removeHandler(told)
        log.setLevel(level)


class _Told(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        say_error(record.getMessage())


def say_note(text: str) -> None:
    say_error(f"note: {text}")


def say_json(data: Any) -> None:
    encoding = (getattr(sys.stdout, "encoding", None) or "ascii").lower()
    _write(json.dumps(data, ensure_ascii=not encoding.startswith("utf")))


def _write(text: str) -> None:
    if sys.stdout is None:
        raise FarmError("the standard output is closed")
    _erase_counter()
    try:
        print(text, flush=True)
    except BrokenPipeError:
        raise
    except OSError as error:
        leave_stdout()
        raise FarmError(f"the standard output takes nothing: {error.strerror}") from None


def leave_stdout() -> None:
    """So that Python does not try once more at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def fail(error: FarmError) -> int:
    say_error(str(error))
    return error.exit_code


def printable(text: str) -> str:
    """Text from others cannot move the cursor, colour the screen or start a new line."""
    if text.isprintable() and text.isascii():
        return text
    return "".join(
        character
        if character.isprintable() or character in "\n\t"
        else character.encode("unicode_escape").decode()
        for character in text.encode(errors="backslashreplace").decode()
    )


def one_line(text: str) -> str:
    return printable(text).replace("\n", "\\n").replace("\t", " ")


def counted(count: int, noun: str) -> str:
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


def duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def pictures(count: int) -> str:
    return counted(count, "picture")


def counter(lead: str = "", noun: str = "picture") -> Callable[[int], None] | None:
    """Shows a number that counts up, where there is a screen for it."""
    if not sys.stderr.isatty():
        return None
    told = 0.0

    def show(count: int) -> None:
        global _counting
        nonlocal told
        if time.monotonic() - told >= TELL_SECONDS:
            told, _counting = time.monotonic(), True
            print(f"\r\x1b[K{lead}{counted(count, noun)}", end="\r", file=sys.stderr, flush=True)

    return show


def _erase_counter() -> None:
    """A shorter line would not cover it, and one that goes elsewhere leaves it as it is."""
    global _counting
    if _counting:
        _counting = False
        with contextlib.suppress(OSError):
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)


def list_rejected(rejected: Sequence[Any], source: str) -> None:
    for one in rejected[:MAX_LISTED]:
        say_error(f"{one.file or source}: {one_line(str(one))}")
    if len(rejected) > MAX_LISTED:
        say_error(f"{source}: … and {len(rejected) - MAX_LISTED:,} more")


def go_on_with(command: Iterable[str]) -> None:
    """The command with which a user continues after an interruption."""
    _going_on[:] = command
    go_on_also_with()


def go_on_also_with(*options: str, reached: str = "") -> None:
    """What else to type, in place of what was said before; ``reached``: what is there by now."""
    global _reached
    _also[:], _reached = options, reached


def on_interrupt() -> str:
    command = shlex.join([*_going_on, *_also])
    return f"interrupted{_reached and f' ({_reached})'}; to continue: {command}"
