"""How long an engine takes for what: measured, not guessed."""

import json
from collections.abc import Mapping
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from farm.errors import InvalidInput
from farm.spec import Lane, Mode


class Service(BaseModel):
    """Seconds that an engine takes at one size."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    row_step: float = Field(gt=0)  # one row's share of a step of a full tile
    picture: float = Field(ge=0)  # prompt, start and decoding
    encode: float = Field(ge=0)  # an input picture; image-to-image and inpainting only
    urgent_step: float = Field(gt=0)  # of a tile with one row
    urgent_picture: float = Field(ge=0)  # what an urgent picture takes besides
    alone_step: float = Field(gt=0)  # of a full tile that holds one row, as a suspect has it

    def bulk(self, lane: Lane, steps: int) -> float:
        """Seconds of the engine for one picture among many."""
        return steps * self.row_step + self.picture + self._input(lane)

    def urgent(self, lane: Lane, steps: int) -> float:
        """Seconds of the engine for one urgent picture, and of the step that it may wait for."""
        own = steps * self.urgent_step + self.urgent_picture + self._input(lane)
        return own + self.alone_step

    def alone(self, lane: Lane, steps: int) -> float:
        """Seconds for one picture that runs without neighbours after a crash."""
        return steps * self.alone_step + self.picture + self._input(lane)

    def _input(self, lane: Lane) -> float:
        return 0.0 if lane.mode is Mode.TEXT2IMG else self.encode


# One H200, bfloat16, tiles of 32: bench/results/gpu-h200-2026-11-27-visit-3.json. ``picture`` is
# what remains of 1 / (pictures/s) after twelve steps; ``urgent_picture`` likewise of one alone.
H200: Mapping[str, Service] = {
    "256x256": Service(
        row_step=0.000835,
        picture=0.00195,
        encode=0.00403,
        urgent_step=0.00217,
        urgent_picture=0.00996,
        alone_step=0.0267,
    ),
    "512x512": Service(
        row_step=0.000912,
        picture=0.00575,
        encode=0.01267,
        urgent_step=0.00217,
        urgent_picture=0.01935,
        alone_step=0.0292,
    ),
}


def read_services(path: Path) -> dict[str, Service]:
    """Size ("512x512") → service, from a JSON file.

    Raises:
        InvalidInput: the file cannot be read or says something else.
    """
    try:
        sizes = json.loads(path.read_text(encoding="utf-8"))
        services = {str(size): Service.model_validate(told) for size, told in sizes.items()}
    except (OSError, ValueError, AttributeError, ValidationError) as error:
        text = str(error).splitlines()[0]
        raise InvalidInput(f"{path}: {text}", field="--times", hint=_FORM) from None
    for size in services:
        if not all(side.isdigit() for side in size.split("x")) or size.count("x") != 1:
            raise InvalidInput(f"{size!r} is not a size", field="--times", hint=_FORM)
    return services


_FORM = (
    'JSON such as {"256x256": {"row_step": 0.0008, "picture": 0.002, "encode": 0.004, '
    '"urgent_step": 0.002, "urgent_picture": 0.01, "alone_step": 0.027}}, in seconds'
)
