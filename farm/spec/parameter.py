"""All that the farm says about one parameter: its limits, its help and its other names."""

import enum
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from annotated_types import Ge, GroupedMetadata, Gt, Le
from pydantic import AfterValidator, BaseModel
from pydantic.fields import FieldInfo

AssetKind = Literal["image", "mask", "latents", "embeds", "adapter"]


class Form(enum.Enum):
    """How a value is written as text, in a flag or in a cell of a table."""

    TEXT = "text"
    INTEGER = "a whole number"
    NUMBER = "a number"
    PAIR = "a pair of numbers, such as 0,0"
    NUMBERS = "a number or a pair of numbers, such as 2,0"
    FILE = "a file"
    ADAPTERS = "a list of adapters, such as outline:0.8"


@dataclass(frozen=True, kw_only=True)
class Parameter(GroupedMetadata):
    """Is in a field's annotation, beside its type. Pydantic checks the limits; the flags of
    ``farm submit``, the README's table and the hints of refusals are made from the rest.

    A pair's limits hold for each of its numbers.
    """

    help: str  # without a full stop
    form: Form = Form.TEXT
    least: float | None = None
    above: float | None = None
    most: float | None = None
    default: str = ""  # in words, where the farm fills it in later
    allowed: str = ""  # in words, what the limits do not say
    pipelines: tuple[str, ...] | None = None  # the diffusers pipelines' words; None: the same name
    aliases: tuple[str, ...] = ()  # other names of its flag
    elsewhere: tuple[str, ...] = ()  # what other programs call it; named in the hint of a refusal
    letter: str = ""  # of its short flag
    metavar: str = "TEXT"
    asset: AssetKind | None = None  # what the file must hold

    def __iter__(self) -> Iterator[Any]:
        if self.form in (Form.PAIR, Form.NUMBERS):
            yield AfterValidator(self._check_each)
            return
        if self.least is not None:
            yield Ge(self.least)
        if self.above is not None:
            yield Gt(self.above)
        if self.most is not None:
            yield Le(self.most)

    def _check_each(self, value: Any) -> Any:
        assert self.least is not None
        assert self.most is not None
        for number in value if isinstance(value, tuple) else (value,):
            if not self.least <= number <= self.most:
                raise ValueError(f"must be {self.wanted}")
        return value

    @property
    def limits(self) -> str:
        """``1 to 1,000``, or nothing."""
        if self.most is None:
            return "" if self.least is None else f"at least {self.least:,g}"
        if self.above is not None:
            return f"above {self.above:,g}, up to {self.most:,g}"
        most = "2^64 - 1" if self.most == 2**64 - 1 else f"{self.most:,g}"
        return f"{self.least:,g} to {most}"

    @property
    def wanted(self) -> str:
        """What a wrong value should have been."""
        each = "each " if self.form in (Form.PAIR, Form.NUMBERS) else ""
        return f"{self.form.value}, {each}{self.limits}" if self.limits else self.form.value

    def default_text(self, field: FieldInfo) -> str:
        if self.default or field.default is None:
            return self.default
        value = field.default
        return ",".join(f"{n:g}" for n in value) if isinstance(value, tuple) else _plain(value)

    def flag_help(self, field: FieldInfo) -> str:
        """The help of its flag, in one or two sentences."""
        limits = f" ({self.limits})" if self.limits else ""
        default = self.default_text(field)
        return f"{self.help}{limits}." + (f" Default: {default}." if default else "")


def parameters_of(model: type[BaseModel]) -> Mapping[str, Parameter]:
    """The parameters of a model, by the names of their fields."""
    return {
        name: next(one for one in field.metadata if isinstance(one, Parameter))
        for name, field in model.model_fields.items()
    }


def _plain(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
