"""Which column of a file holds which parameter; the others are kept as metadata."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Self

from farm.cli.parse_values import parameter_named
from farm.errors import InvalidInput
from farm.metadata import METADATA, check_column, no_prompt, parameter_meant
from farm.spec import PARAMETERS

MAX_COLUMNS = 1000


class Table(NamedTuple):
    """The columns of a table by their place."""

    parameters: Mapping[int, str]  # each the parameter that it holds
    kept: Mapping[int, str]  # each the name of a metadatum


@dataclass(frozen=True)
class Columns:
    """What ``--column`` says.

    ``chosen`` has the parameters by their columns, ``kept`` the columns that are metadata whatever
    their names mean.
    """

    chosen: Mapping[str, str] = field(default_factory=dict)
    kept: frozenset[str] = frozenset()

    @classmethod
    def parse(cls, given: Sequence[str]) -> Self:
        """``PARAMETER=COLUMN``, ``metadata=COLUMN``, or only the column with the prompts."""
        chosen: dict[str, str] = {}
        kept = set()
        for text in given:
            parameter, equals, column = text.partition("=")
            if not equals:
                parameter, column = "prompt", text
            if parameter == METADATA:
                kept.add(column)
                continue
            if parameter not in PARAMETERS:
                meant = parameter_meant(parameter)
                raise InvalidInput(
                    f"{parameter[:60]!r} is not a parameter",
                    field="--column",
                    hint=f"did you mean {meant!r}?" if meant else "such as prompt=caption",
                )
            if parameter in chosen.values():
                raise InvalidInput(f"two columns for {parameter}", field="--column")
            chosen[column] = parameter
        return cls(chosen, frozenset(kept))

    def __bool__(self) -> bool:
        return bool(self.chosen or self.kept)

    def row(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """A row of named values with the chosen columns under their parameters' names."""
        taken, own = set(self.chosen.values()), {}
        found: dict[str, Any] = {}
        for name, value in row.items():
            if name in self.chosen:
                found[self.chosen[name]] = value
            elif name in self.kept or name in taken:
                own[name] = value
            else:
                found[name] = value
        given = found.get(METADATA)
        if own and (given is None or isinstance(given, Mapping)):
            found[METADATA] = own | dict(given or {})
        return found

    def table(self, header: Sequence[str]) -> Table:
        """Columns by their titles, whatever their case.

        Raises:
            InvalidInput: a title means a parameter without being its name, two mean the same, or
                no column holds the prompts.
        """
        parameters: dict[int, str] = {}
        kept: dict[int, str] = {}
        for place, title in enumerate(header[:MAX_COLUMNS]):
            parameter = self._parameter(title)
            if parameter is None and not title.strip():
                continue  # such as the numbers that pandas writes before its rows
            known = kept.values() if parameter is None else parameters.values()
            name = title.strip() if parameter is None else parameter
            if name in known:
                what = f"are called {name[:40]!r}" if parameter is None else f"mean {name}"
                raise InvalidInput(f"two columns {what}", field="column", line=1, column=place + 1)
            if parameter is None:
                self._check(title, place)
                kept[place] = name
            else:
                parameters[place] = parameter
        self._check_complete(header, parameters)
        return Table(parameters, kept)

    def _parameter(self, title: str) -> str | None:
        if title in self.chosen:
            return self.chosen[title]
        if title in self.kept:
            return None
        parameter = parameter_named(title)
        return None if parameter in self.chosen.values() else parameter

    def _check(self, title: str, place: int) -> None:
        if title in self.kept or parameter_named(title) is not None:
            return
        try:
            check_column(title)
        except InvalidInput as error:
            meant = parameter_meant(title) or METADATA
            error.hint = f"to read it all the same: --column {meant}={title}"
            raise error.at(1, place + 1) from None

    def _check_complete(self, header: Sequence[str], parameters: Mapping[int, str]) -> None:
        found = set(parameters.values())
        for title, parameter in self.chosen.items():
            if parameter not in found:
                shown = ", ".join(one[:40] for one in header[:12])
                raise InvalidInput(
                    f"there is no column {title!r}; there are: {shown}", field="--column"
                )
        if not found & {"prompt", "embeds"}:
            raise no_prompt(header)
