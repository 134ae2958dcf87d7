"""Parameters written as text, on the command line or in a table, become their own types."""

from collections.abc import Callable, Mapping
from typing import Any

from farm.errors import InvalidInput
from farm.job import OPTIONS
from farm.spec import PARAMETERS, Form, parse_adapters

_PARAMETERS_BY_NAME = {
    name: parameter
    for parameter, facts in PARAMETERS.items()
    for name in (parameter, *facts.aliases)
}


def parameter_named(title: str) -> str | None:
    """The parameter that a column's title or a flag names, whatever its case."""
    name = title.strip().lower().replace(" ", "_").replace("-", "_")
    return _PARAMETERS_BY_NAME.get(name)


def parse_value(parameter: str, text: str) -> Any:
    """The value of a render's parameter or a job's option, in its own type; its limits are
    checked later, with all the others.

    Raises:
        InvalidInput: the text cannot be read as a value of that type.
    """
    form = (PARAMETERS.get(parameter) or OPTIONS[parameter]).form
    parse = _PARSERS.get(form)
    if parse is None:
        return text
    try:
        return parse(text.strip())
    except ValueError:
        raise InvalidInput(f"must be {form.value}; got {text[:60]!r}", field=parameter) from None


def _integer(text: str) -> int:
    return int(text) if not text.endswith(".0") else int(text[:-2])


def _numbers(text: str) -> list[float | int] | float | int:
    inner = text.strip("()[] ")
    numbers = [_number(part) for part in inner.replace(",", " ").split()]
    if not numbers:
        raise ValueError(text)
    return numbers[0] if len(numbers) == 1 and inner == text else numbers


def _number(text: str) -> float | int:
    try:
        return int(text)
    except ValueError:
        value = float(text)
        if value != value or value in (float("inf"), float("-inf")):
            raise
        return value


_PARSERS: Mapping[Form, Callable[[str], Any]] = {
    Form.INTEGER: _integer,
    Form.NUMBER: _number,
    Form.PAIR: _numbers,
    Form.NUMBERS: _numbers,
    Form.ADAPTERS: parse_adapters,
}
