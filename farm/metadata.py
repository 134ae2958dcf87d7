"""What a row says besides a render's parameters: kept for the user, and never read by the farm."""

import difflib
import functools
import json
from collections.abc import Iterable, Mapping
from typing import Any

from farm.errors import InvalidInput, TooLarge
from farm.job import OPTIONS
from farm.spec import PARAMETERS, canonical_json

MAX_COLUMNS = 500  # of a user's own, in one row
MAX_METADATA_BYTES = 16 * 1024  # of one row, as JSON
MAX_KEY_CHARACTERS = 200
METADATA = "metadata"

# Options of the whole job; many tables have a ``name``, and a seed is a parameter too.
_JOB_OPTIONS = OPTIONS.keys() - {"name", "seed"}
# Keys of a row that are not columns of the user's own.
KNOWN = frozenset({*PARAMETERS, METADATA, "num_images_per_prompt", "cross_attention_kwargs"})
_RENDERED = KNOWN - {METADATA}
_OTHER_NAMES = {
    other: parameter
    for parameter, facts in PARAMETERS.items()
    for other in (*(facts.pipelines or ()), *facts.elsewhere, *facts.aliases)
    if other not in KNOWN
}
_CLOSE = 0.8  # of difflib; "wdith" is that close to "width"


def split_metadata(
    data: Mapping[str, Any], *, columns: bool = True
) -> tuple[dict[str, Any], str | None]:
    """A row's parameters, and everything else as canonical JSON.

    Keys that are not parameters become metadata, beside those of the key ``metadata``. Values are
    text, numbers, truth values and lists of these; objects and other lists are kept as JSON text,
    and null is left out.

    Args:
        data: the row.
        columns: whether it comes from a file, with columns of the user's own. In a single call
            only ``id`` and ``metadata`` are kept, and other keys are refused.

    Raises:
        InvalidInput: a key was probably meant to be a parameter.
        TooLarge: the metadata exceed ``MAX_METADATA_BYTES``.
    """
    parameters, own = split_columns(data)
    if own is None:
        return parameters, None
    prompted = parameters.get("prompt") is not None or parameters.get("embeds") is not None
    return parameters, metadata_of(own, columns=columns, prompted=prompted)


def split_columns(data: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """A row's parameters, and what else it has as it stands there; None if it has nothing else."""
    if data.keys() <= PARAMETERS.keys():
        return dict(data), None
    own = {name: value for name, value in data.items() if name not in _RENDERED}
    return {name: value for name, value in data.items() if name in _RENDERED}, own or None


def metadata_of(own: Mapping[str, Any], *, columns: bool, prompted: bool = True) -> str | None:
    """The metadata of ``split_metadata``, and what it raises.

    Args:
        own: what a row has besides parameters.
        columns: as there.
        prompted: whether the row has a prompt, or embeddings.
    """
    others = {name: value for name, value in own.items() if name != METADATA}
    kept = _own(own.get(METADATA))
    if len(others) > MAX_COLUMNS:
        raise TooLarge(
            f"has {len(others):,} columns; at most {MAX_COLUMNS} are kept", field=METADATA
        )
    for name in others:
        check_column(name, columns=columns)
        if not columns and name != "id":
            raise InvalidInput(
                "is not a known parameter", field=name, hint="your own data go into metadata"
            )
    found = {**others, **kept}
    if len(found) < len(others) + len(kept):
        twice = next(name for name in others if name in kept)
        raise InvalidInput("stands in the row and in its metadata", field=twice)
    if found and not prompted:
        raise no_prompt(found)
    return _canonical(found)


def _own(given: Any) -> Mapping[str, Any]:
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        raise InvalidInput(
            f"is an object, not {type(given).__name__}",
            field=METADATA,
            hint='for example {"prompt": "a red circle", "metadata": {"id": 7}}',
        )
    return given


def check_column(name: str, *, columns: bool = False) -> None:
    """Refuse a key that is not a parameter and was probably meant to be one.

    Args:
        name: the key.
        columns: as in ``split_metadata``; what a file has may be read all the same.
    """
    if name in _JOB_OPTIONS:
        raise InvalidInput(
            "is an option of the whole job, not of one render",
            field=name,
            hint=f"to keep a file's column: --column {METADATA}={name}" if columns else None,
        )
    if len(name) <= MAX_KEY_CHARACTERS and (meant := parameter_meant(name)) is not None:
        hint = f"did you mean {meant!r}?"
        hint += f" for a file: --column {meant}={name}" if columns else ""
        raise InvalidInput("is not a known parameter", field=name, hint=hint)


@functools.lru_cache(4096)  # the rows of a file have the same columns
def parameter_meant(name: str) -> str | None:
    """The parameter that a wrong name stands for: another program's word, or a typing error."""
    plain = name.strip().lower().replace(" ", "_").replace("-", "_")
    if plain in PARAMETERS:
        return plain
    if plain in _OTHER_NAMES:
        return _OTHER_NAMES[plain]
    near = (
        known
        for known in (*PARAMETERS, *_OTHER_NAMES)
        if len(known) > 3 and known[0] == plain[:1] and abs(len(known) - len(plain)) <= 1
    )
    close = difflib.get_close_matches(plain, near, n=1, cutoff=_CLOSE)
    return _OTHER_NAMES.get(close[0], close[0]) if close else None


def no_prompt(columns: Iterable[str]) -> InvalidInput:
    shown = ", ".join(name[:40] for name in list(columns)[:12])
    return InvalidInput(
        f"is missing; the columns are: {shown}",
        field="prompt",
        hint="say which one holds the prompts: --column NAME",
    )


def _canonical(found: Mapping[str, Any]) -> str | None:
    kept = {name: _plain(name, value) for name, value in found.items() if value is not None}
    if not kept:
        return None
    for name in kept:
        if not name.isprintable() or not 0 < len(name) <= MAX_KEY_CHARACTERS:
            raise InvalidInput(
                f"the name {name[:40]!r} is empty, too long or cannot be printed", field=METADATA
            )
    text = canonical_json(kept)
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        raise InvalidInput(
            "has half a surrogate pair; send valid Unicode", field=METADATA
        ) from None
    if size > MAX_METADATA_BYTES:
        largest = max(kept, key=lambda name: len(json.dumps(kept[name])))
        raise TooLarge(
            f"has {size:,} bytes; at most {MAX_METADATA_BYTES:,} are allowed",
            field=METADATA,
            hint=f"the largest column is {largest[:40]!r}",
        )
    return text


def _plain(name: str, value: Any) -> Any:
    if isinstance(value, str | int):
        return value
    try:
        text = canonical_json(value)
    except ValueError:  # JSON may say 1e999, and that is read as infinity
        raise InvalidInput(f"the number in {name[:40]!r} is not finite", field=METADATA) from None
    if isinstance(value, float):
        return value
    if isinstance(value, list) and all(isinstance(one, str | int | float) for one in value):
        return value
    return text
