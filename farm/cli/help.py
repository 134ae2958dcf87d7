"""The help of a command: words that say what a value is, its limits and its default, not types."""

from enum import Enum
from typing import Any

from typer.core import TyperCommand

_WORDS = {int: "N", float: "X"}

Record = tuple[str, str]  # what is typed, and what it means


class Command(TyperCommand):
    """Its help page has no types of Python and no notation of ranges."""

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        arguments = [_argument(one) for one in self.get_params(ctx) if _is_argument(one)]
        return [*([self.options_metavar] if self.options_metavar else []), *arguments]

    def format_options(self, ctx: Any, formatter: Any) -> None:
        for title, kind in (("Arguments", True), ("Options", False)):
            params = [one for one in self.get_params(ctx) if _is_argument(one) is kind]
            if found := [one for one in records(params) if one[1]]:
                with formatter.section(title):
                    formatter.write_dl(found)


def records(params: list[Any]) -> list[Record]:
    """Of those that are shown."""
    return [
        (_argument(one) if _is_argument(one) else _option(one), _meaning(one))
        for one in params
        if not one.hidden
    ]


def _is_argument(param: Any) -> bool:
    return bool(param.param_type_name == "argument")


def _argument(param: Any) -> str:
    word = _word(param)
    return word if param.required or word.startswith("[") else f"[{word}]"


def _option(param: Any) -> str:
    flags = ", ".join(sorted(param.opts, key=lambda flag: flag.startswith("--")))
    if param.secondary_opts:
        flags += f" / {', '.join(param.secondary_opts)}"
    return flags if param.is_flag else f"{flags} {_word(param)}"


def _word(param: Any) -> str:
    if param.metavar is not None:
        return str(param.metavar)
    if _is_argument(param):
        return "|".join(_choices(param))
    return "KIND" if _choices(param) else _WORDS.get(param.type_descriptor.annotation, "TEXT")


def _choices(param: Any) -> list[str]:
    return [str(one.value) for one in param.type_descriptor.choices or ()]


def _meaning(param: Any) -> str:
    help_, limits = param.help or "", _limits(param)
    told = [f"{help_.removesuffix('.')} ({limits})." if limits else help_]
    if _choices(param) and not _is_argument(param):
        told.append(f"One of {', '.join(_choices(param))}.")
    default = [text for text in (param.envvar, _default(param)) if text]
    if default:
        told.append(f"Default: {', else '.join(default)}.")
    elif param.required and not _is_argument(param):
        told.append("Required.")
    return " ".join(one for one in told if one)


def _limits(param: Any) -> str:
    least, most = getattr(param, "min", None), getattr(param, "max", None)
    if least is not None and most is not None:
        return f"{_plain(least)} to {_plain(most)}"
    return f"at least {_plain(least)}" if least is not None and least > 1 else ""


def _default(param: Any) -> str:
    value = param.default
    if not param.show_default or value is None or callable(value):
        return ""
    if isinstance(value, bool):
        if not param.secondary_opts:
            return ""
        return str((param.opts if value else param.secondary_opts)[0])
    if isinstance(value, Enum):
        return str(value.value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def _plain(number: float) -> str:
    return f"{number:,}" if isinstance(number, int) else f"{number:g}"
