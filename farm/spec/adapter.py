"""Adapters as a render names them: by name, or by the sha256 of a file, each with a scale."""

import re
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, field_validator

MAX_ADAPTERS = 4  # of one render
MAX_SCALE = 10.0
FILE_ENDING = ".safetensors"
DIGEST = re.compile(r"(?:sha256:)?([0-9a-f]{64})")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class AdapterChoice(BaseModel):
    """One of the adapters of a request."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    adapter: str  # a name, or the sha256 of an uploaded file
    scale: Annotated[float, Field(ge=-MAX_SCALE, le=MAX_SCALE, allow_inf_nan=False)] = 1.0

    @field_validator("adapter")
    @classmethod
    def _named(cls, value: str) -> str:
        if found := DIGEST.fullmatch(value):
            return found[1]
        return check_adapter_name(value)

    @property
    def sha256(self) -> str | None:
        """Of the file; None where it is named."""
        return self.adapter if DIGEST.fullmatch(self.adapter) else None


def as_adapter_list(value: Any) -> Any:
    """A list of objects; what they hold, their own class checks."""
    if value is None:
        return ()
    if not isinstance(value, list | tuple) or not all(
        isinstance(one, dict | AdapterChoice) for one in value
    ):
        raise ValueError("must be a list of objects")
    if len(value) > MAX_ADAPTERS:
        raise ValueError(f"names {len(value)} adapters; at most {MAX_ADAPTERS} are allowed")
    return tuple(value)


def check_adapter_name(name: str) -> str:
    """The name itself; raises ``ValueError`` where no adapter can have it."""
    if not _NAME.fullmatch(name) or DIGEST.fullmatch(name):
        raise ValueError(
            f"{name[:80]!r} is not the name of an adapter; up to 64 letters, digits, . _ and -"
        )
    if name.endswith(FILE_ENDING):
        raise ValueError(f"{name[:80]!r} is the name of a file; an adapter's has no {FILE_ENDING}")
    return name


def parse_adapters(text: str) -> list[dict[str, str | float]]:
    """``outline:0.8 dots`` as a request has it; raises ``ValueError``."""
    found: list[dict[str, str | float]] = []
    for word in text.replace(",", " ").split():
        start, colon, scale = word.rpartition(":")
        if not colon or (start == "sha256" and DIGEST.fullmatch(word)):
            found.append({"adapter": word})
        else:
            found.append({"adapter": start, "scale": float(scale)})
    return found
