"""The part of an engine that a worker uses."""

from collections.abc import Hashable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from farm.errors import FarmError
from farm.spec import Lane, Row

CONFIDENCE_DIGITS = 4  # of a row's confidence in its file and manifest; the rest is of no use


class Adapter(Protocol):
    """An adapter as the engine has read it."""

    @property
    def nbytes(self) -> int: ...


class RowResult(Protocol):
    """A row that has left the engine: its tokens and picture, or its error."""

    @property
    def key(self) -> Any: ...  # as it was given to ``add``
    @property
    def index(self) -> int: ...  # of the row in its render
    @property
    def tokens(self) -> NDArray[np.uint16] | None: ...  # (token rows, columns)
    @property
    def pixels(self) -> NDArray[np.uint8] | None: ...  # (height, width, 3), if wanted
    @property
    def confidence(self) -> float: ...  # mean probability of the tokens, when each was fixed
    @property
    def steps(self) -> int: ...
    @property
    def error(self) -> FarmError | None: ...
    @property
    def truncated(self) -> bool: ...  # the prompt is longer than the text encoder's input
    @property
    def numerics(self) -> str: ...  # class of the row: the width of its tile is a part of it


class RowPreview(Protocol):
    """A row half way: what its picture would be if it ended now."""

    @property
    def step(self) -> int: ...  # after which it looks so
    @property
    def steps(self) -> int: ...
    @property
    def pixels(self) -> NDArray[np.uint8]: ...  # (height, width, 3)
    @property
    def confidence(self) -> float: ...


class Usage(NamedTuple):
    """What an engine has done since it was loaded."""

    steps: int = 0  # of tiles
    busy: int = 0  # half-slots with a row in them, summed over the steps
    computed: int = 0  # half-slots that were computed, likewise
    memory: Mapping[str, int] = MappingProxyType({})  # of a GPU, bytes: used, reserved, total


class RenderEngine(Protocol):
    """``Engine``, or what stands in for it or around it in tests."""

    numerics: str  # class of its bulk rows

    @property
    def device(self) -> str:
        """For people: ``CPU``, or a GPU's number and model."""

    @property
    def idle(self) -> bool: ...

    @property
    def usage(self) -> Usage: ...

    def room(self, lane: Lane) -> int:
        """Rows that can be added now."""

    def add(
        self,
        key: Hashable,
        row: Row,
        *,
        image: NDArray[np.uint8] | None = None,
        mask: NDArray[np.uint8] | None = None,
        latents: NDArray[Any] | None = None,
        embeds: Any | None = None,
        adapters: Mapping[str, Any] = MappingProxyType({}),
        urgent: bool = False,
        pixels: bool = True,
    ) -> None:
        """Take a row; raises ``FarmError`` where its inputs do not fit it.

        ``adapters`` are those that the row's spec names, by the sha256 of their files. Without
        ``pixels`` only the tokens are wanted.
        """

    def read_adapter(self, data: bytes) -> Adapter:
        """An adapter from its file's bytes, in any thread; raises ``FarmError`` where it does not
        fit the checkpoint."""

    def step(self) -> Sequence[RowResult]:
        """Do one bounded piece of work; returns the rows that are finished by it."""

    def cancel(self, keys: Iterable[Hashable]) -> None:
        """Drop the rows of these keys."""

    def preview(self, key: Hashable, index: int) -> RowPreview | None:
        """A row after its last step; None where it has not begun or is finished."""
