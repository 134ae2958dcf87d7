"""Groups of workers: with which checkpoints, on what, and how many."""

import contextlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from farm.errors import InvalidInput

EXAMPLE = "2, or amused-512:4xgpu,shapes-64:1-3xcpu, or a file with such lines"
MOST_WORKERS = 10_000

_ENTRY = re.compile(
    r"(?:(?P<checkpoints>[^:\s]+):)?"
    r"(?P<least>\d+)(?:-(?P<most>\d+))?"
    r"(?:x(?P<amount>\d*\.?\d+)?(?P<device>gpu|cpu))?"
)


@dataclass(frozen=True)
class WorkerGroup:
    """Workers that differ in their number alone: ``NAME-0``, ``NAME-1`` and so on."""

    name: str
    least: int
    most: int
    gpus: float = 0  # that one worker reserves
    cpus: float = 1
    checkpoints: tuple[str, ...] = ()  # as FARM_CHECKPOINTS has them; none for all of them
    device: str = ""  # as FARM_DEVICE has it; empty for the setting itself

    def workers(self, count: int) -> list[str]:
        return [f"{self.name}-{number}" for number in range(count)]

    @property
    def served(self) -> frozenset[str]:
        """Its checkpoints' short names; none for all of the farm's."""
        return frozenset(map(short_name, self.checkpoints))

    @property
    def environment(self) -> dict[str, str]:
        """What its workers are told besides the settings of all."""
        told = {"FARM_CHECKPOINTS": ",".join(self.checkpoints), "FARM_DEVICE": self.device}
        return {name: value for name, value in told.items() if value}


def parse_groups(
    text: str, checkpoints: Sequence[str], *, gpus: float, cpus: float
) -> tuple[WorkerGroup, ...]:
    """The groups that ``--workers`` and FARM_WORKERS name.

    Args:
        text: entries ``[CHECKPOINT[+CHECKPOINT]:]COUNT[-MOST][x[AMOUNT]gpu|cpu]``, separated by
            commas or line ends, or the path of a file with such lines.
        checkpoints: the farm's, as FARM_CHECKPOINTS has them.
        gpus, cpus: what a worker reserves whose entry does not say it.

    Raises:
        InvalidInput: an entry is not understood, names an unknown checkpoint or is there twice.
    """
    file = groups_file(text)
    try:
        lines = text if file is None else file.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise _wrong(f"names {text}, which cannot be read: {error}") from None
    bare = [line.partition("#")[0] for line in lines.splitlines()]
    entries = [entry.strip() for line in bare for entry in line.split(",") if entry.strip()]
    groups = [_group(entry, checkpoints, gpus, cpus) for entry in entries]
    names = [group.name for group in groups]
    for name in names:
        if names.count(name) > 1:
            raise _wrong(f"has two entries for the workers {name}-0 and so on")
    if not groups:
        raise _wrong("names no workers")
    return tuple(groups)


def groups_file(text: str) -> Path | None:
    """The file that it names, if it names one."""
    with contextlib.suppress(OSError):  # entries may be longer than a file's name
        if "\n" not in text and Path(text).is_file():
            return Path(text)
    return None


def grown(group: WorkerGroup, least: int | None, most: int | None) -> WorkerGroup:
    """A group with other limits; its own where there are none.

    Raises:
        InvalidInput: fewer at most than at least.
    """
    made = replace(
        group,
        least=group.least if least is None else least,
        most=group.most if most is None else most,
    )
    if made.least > made.most:
        raise InvalidInput(
            f"{made.most} workers at most are fewer than {made.least} at least",
            field="--max-workers",
            hint="lower --min-workers or --workers, or raise --max-workers",
        )
    return made


def _group(entry: str, checkpoints: Sequence[str], gpus: float, cpus: float) -> WorkerGroup:
    found = _ENTRY.fullmatch(entry)
    if found is None:
        raise _wrong(f"has {entry[:60]!r}, which is not understood")
    least = int(found["least"])
    most = int(found["most"] or least)
    if least > most or most > MOST_WORKERS:
        raise _wrong(f"has {entry[:60]!r}; a range begins with its lower number")
    named = tuple(_find(name, checkpoints) for name in (found["checkpoints"] or "").split("+"))
    chosen = tuple(name for name in named if name)
    device, amount = found["device"], float(found["amount"] or 1)
    name = "-".join(
        [*(short_name(checkpoint) for checkpoint in chosen), *([device] if device else [])]
    )
    return WorkerGroup(
        name=re.sub(r"[^A-Za-z0-9._-]", "-", name) or "worker",
        least=least,
        most=most,
        gpus={"gpu": amount, "cpu": 0}.get(device, gpus),
        cpus={"gpu": 0, "cpu": amount}.get(device, cpus),
        checkpoints=chosen,
        device="cpu" if device == "cpu" else "",
    )


def _find(name: str, checkpoints: Sequence[str]) -> str:
    if not name:
        return ""
    found = [one for one in checkpoints if name in (one, one.partition("@")[0], short_name(one))]
    if len(found) != 1:
        there = ", ".join(map(short_name, checkpoints)) or "none"
        problem = "means several checkpoints" if found else "is not a checkpoint of this farm"
        raise _wrong(f"has {name[:60]!r}, which {problem}", f"there are: {there}")
    return found[0]


def short_name(checkpoint: str) -> str:
    """The last part of a checkpoint's path or id, without its revision."""
    return Path(checkpoint.partition("@")[0]).name


def _wrong(message: str, hint: str = EXAMPLE) -> InvalidInput:
    return InvalidInput(message, field="--workers", hint=hint)
