"""Which sinks there are: the farm's own, and those of installed packages."""

import difflib
from collections.abc import Callable
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import cast

from farm.errors import FarmError, InvalidInput
from farm.sinks.images import Images
from farm.sinks.parquet import Parquet, Tokens
from farm.sinks.protocol import Sink
from farm.sinks.shards import Shards
from farm.sinks.webdataset import Webdataset
from farm.store import Store

GROUP = "amused_farm.sinks"  # of the entry points; each names a class like ``Images``

OpenSink = Callable[[Store, Path], Sink]

_BUILT_IN: dict[str, OpenSink] = {
    "images": Images,
    "webdataset": lambda store, folder: Shards(store, folder, Webdataset()),
    "parquet": lambda store, folder: Shards(store, folder, Parquet()),
    "tokens": lambda store, folder: Shards(store, folder, Tokens()),
}


class Sinks:
    """The sinks on one store, each opened when it is first asked for.

    Args:
        folder: for what waits to be stored, see ``Sink``.
    """

    def __init__(self, store: Store, folder: Path) -> None:
        self._store = store
        self._folder = folder
        self._open: dict[str, Sink] = {}

    def get(self, name: str) -> Sink:
        """Raises ``InvalidInput`` for a name that is not known here, ``FarmError`` for a package's
        sink that lacks a method."""
        if name not in self._open:
            sink = _find(name)(self._store, self._folder / name)
            if not isinstance(sink, Sink):
                raise FarmError(f"the sink {name!r} does not fit this version of the farm")
            return self._open.setdefault(name, sink)  # another thread may have been faster
        return self._open[name]


def check_sink(name: str) -> None:
    """Raises ``InvalidInput`` for a name that is not known here."""
    if name not in _BUILT_IN and name not in _installed():
        known = sorted({*_BUILT_IN, *_installed()})
        close = difflib.get_close_matches(name, known, n=1)
        hint = f"known here: {', '.join(known)}"
        raise InvalidInput(
            f"{name!r} is not a known sink",
            field="sink",
            hint=f"did you mean {close[0]!r}? {hint}" if close else hint,
        )


def _find(name: str) -> OpenSink:
    check_sink(name)
    if name in _BUILT_IN:
        return _BUILT_IN[name]
    try:
        return cast(OpenSink, _installed()[name].load())
    except Exception as error:  # whatever the package does when it is imported
        raise FarmError(f"the sink {name!r} cannot be loaded: {error!r}") from error


def _installed() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=GROUP)}
