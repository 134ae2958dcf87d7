"""Parameters written as text, on the command line or in a table, become their own types."""

from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal, InvalidOperation
from typing import Any

from farm.errors import InvalidInput
from farm.job import OPTIONS
from farm.spec import PARAMETERS, Form, parse_adapters

MAX_RANGE = 1_000_000  # values
_PARAMETERS_BY_NAME = {name: name for name in PARAMETERS} | {"num_images_per_prompt": "num_images"}


def parameter_named(title: str) -> str | None:
    """The parameter that a column's title names, whatever its case."""
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


def parse_values(parameter: str, texts: Sequence[str]) -> list[Any]:
    """All values of a parameter, in their order.

    Numbers may be lists and ranges with both ends, ``3,6,10``, ``1..4`` or ``0.2..0.8..0.2``; a
    value of another kind is a text of its own. Adapters are one list, however they are given.
    """
    if PARAMETERS[parameter].form is Form.ADAPTERS:
        return [parse_value(parameter, " ".join(texts))] if texts else []
    if PARAMETERS[parameter].form not in (Form.INTEGER, Form.NUMBER):
        return [parse_value(parameter, text) for text in texts]
    parts = [part for text in texts for part in text.split(",")]
    return [parse_value(parameter, one) for part in parts for one in _range(parameter, part)]


def _range(parameter: str, text: str) -> Sequence[str]:
    ends = text.split("..")
    if len(ends) == 1:
        return ends
    wrong = InvalidInput(
        f"{text[:60]!r} is not a range", field=parameter, hint="write 1..4, or 1..9..2 with a step"
    )
    try:
        first, last, *rest = (Decimal(end.strip()) for end in ends)
    except InvalidOperation:
        raise wrong from None
    step = rest[0] if rest else Decimal(1)
    if len(rest) > 1 or not all(map(Decimal.is_finite, (first, last, step))) or step <= 0:
        raise wrong
    count = int((last - first) / step) + 1 if last >= first else 0
    if not 0 < count <= MAX_RANGE:
        raise wrong
    return [str(first + step * place) for place in range(count)]


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
