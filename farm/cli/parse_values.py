"""Parameters written as text, on the command line or in a table, become their own types."""

from collections.abc import Callable, Mapping
from typing import Any

from farm.errors import InvalidInput
from farm.spec import RenderRequest

ALIASES = {
    "steps": "num_inference_steps",
    "guidance": "guidance_scale",
    "num_images_per_prompt": "num_images",
    "mask": "mask_image",
    "crop": "micro_conditioning_crop_coord",
    "aesthetic_score": "micro_conditioning_aesthetic_score",
}


def parameter_of(column: str) -> str | None:
    """The parameter that a column or a flag names, whatever its case."""
    name = column.strip().lower().replace(" ", "_").replace("-", "_")
    name = ALIASES.get(name, name)
    return name if name in RenderRequest.model_fields else None


def convert(parameter: str, text: str) -> Any:
    """The value; what it may be, the farm checks."""
    kind = _KINDS.get(parameter)
    if kind is None:
        return text
    try:
        return kind(text.strip())
    except ValueError:
        raise InvalidInput(f"must be {_WORDS[kind]}; got {text[:60]!r}", field=parameter) from None


def _whole(text: str) -> int:
    return int(text) if not text.endswith(".0") else int(text[:-2])


def _pair(text: str) -> list[float | int] | float | int:
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


_KINDS: Mapping[str, Callable[[str], Any]] = {
    "height": _whole,
    "width": _whole,
    "num_inference_steps": _whole,
    "seed": _whole,
    "num_images": _whole,
    "guidance_scale": _number,
    "strength": _number,
    "micro_conditioning_aesthetic_score": _number,
    "adapter_scale": _number,
    "temperature": _pair,
    "micro_conditioning_crop_coord": _pair,
}
_WORDS: Mapping[Callable[[str], Any], str] = {
    _whole: "a whole number",
    _number: "a number",
    _pair: "a number or two, such as 2,0",
}
