"""Sweeps: one render for each combination of values."""

from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any, Self

from farm.errors import InvalidInput, TooLarge
from farm.metadata import parameter_meant
from farm.spec import FILE_FIELDS, PARAMETERS
from farm_client.inputs import ADAPTERS, adapters_from, asset_id, is_url

MAX_COMBINATIONS = 1_000_000  # of one row

Axes = Mapping[str, Sequence[Any]]


@dataclass(frozen=True)
class Sweep:
    """Every value of ``matrix`` with every other; the lists of ``zipped`` walk together.

    The order is that of nested loops: the first parameter changes slowest, and those of ``zipped``
    change fastest.
    """

    matrix: Axes = field(default_factory=dict)
    zipped: Axes = field(default_factory=dict)

    def without(self, names: Set[str]) -> Self:
        """The sweep over the other parameters."""
        return replace(
            self,
            matrix={name: axis for name, axis in self.matrix.items() if name not in names},
            zipped={name: axis for name, axis in self.zipped.items() if name not in names},
        )

    @classmethod
    def parse(cls, matrix: Any = None, zipped: Any = None) -> Self:
        """A sweep from lists by parameter.

        Raises:
            InvalidInput: a name, a list or their lengths are wrong.
        """
        sweep = cls(_axes(matrix, "matrix"), _axes(zipped, "zip"))
        if twice := sweep.matrix.keys() & sweep.zipped.keys():
            raise InvalidInput("stands in matrix and in zip", field=min(twice))
        lengths = {name: len(values) for name, values in sweep.zipped.items()}
        if len(set(lengths.values())) > 1:
            told = ", ".join(f"{name} {length}" for name, length in lengths.items())
            raise InvalidInput(f"the lists have different lengths: {told}", field="zip")
        if len(sweep) > MAX_COMBINATIONS:
            raise TooLarge(
                f"has {len(sweep):,} combinations; at most {MAX_COMBINATIONS:,} are allowed",
                field="matrix",
                hint="submit several jobs, or write the renders into a file",
            )
        return sweep

    def __bool__(self) -> bool:
        return bool(self.matrix or self.zipped)

    def __len__(self) -> int:
        """How many renders one row becomes."""
        count = len(next(iter(self.zipped.values()))) if self.zipped else 1
        for values in self.matrix.values():
            count *= len(values)
        return count

    @property
    def names(self) -> frozenset[str]:
        return frozenset((*self.matrix, *self.zipped))

    def combinations(self) -> Iterator[dict[str, Any]]:
        for crossed in product(*self.matrix.values()):
            values = dict(zip(self.matrix, crossed, strict=True))
            for together in zip(*self.zipped.values(), strict=True) if self.zipped else ((),):
                yield values | dict(zip(self.zipped, together, strict=True))


def _axes(given: Any, key: str) -> Axes:
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        raise InvalidInput(
            f"is {type(given).__name__}, not lists by parameter",
            field=key,
            hint='for example {"guidance_scale": [3, 6, 10]}',
        )
    found: dict[str, Sequence[Any]] = {}
    for name, values in given.items():
        if name not in PARAMETERS:
            meant = parameter_meant(str(name))
            hint = f"did you mean {meant!r}?" if meant else None
            raise InvalidInput(f"{str(name)[:60]!r} is not a parameter", field=key, hint=hint)
        if not isinstance(values, Sequence) or isinstance(values, str | bytes):
            raise InvalidInput("must be a list of values", field=name)
        if not values:
            raise InvalidInput("is an empty list", field=name)
        found[name] = [_absolute(name, value) for value in values]
    return found


def _absolute(name: str, value: Any) -> Any:
    """A path of the caller's, which must not be taken from the folder of a file of renders."""
    if name == ADAPTERS:
        return adapters_from(Path.cwd(), value)
    if name not in FILE_FIELDS:
        return value
    if isinstance(value, str) and (asset_id(value) is not None or is_url(value)):
        return value
    return Path(value).expanduser().absolute() if isinstance(value, str | Path) else value
