"""What a scorer is, and which ones there are: the farm's own, and those of installed packages."""

import difflib
from collections.abc import Mapping, Sequence
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Protocol, cast

from PIL.Image import Image

from farm.errors import FarmError, InvalidInput

GROUP = "amused_farm.scorers"  # of the entry points; each names a class like ``Scorer``
MANIFEST = "confidence"  # a column that every manifest has

_BUILT_IN = {"pdq": ("farm.scoring.pdq", "Pdq"), "nsfw": ("farm.scoring.nsfw", "Nsfw")}

Values = Mapping[str, float | int | str | bool]


class Scorer(Protocol):
    """Constructed without arguments. One that needs weights, such as CLIP's or an aesthetic
    predictor's, finds them by an environment variable of its own and raises ``InvalidInput`` with a
    hint where they are missing."""

    def score(self, pictures: Sequence[Image]) -> Sequence[Values]:
        """Columns for each picture, an RGB image; their names are lower-case words.

        The same picture gives the same values, whatever stands beside it.
        """
        ...


def open_scorer(name: str) -> Scorer:
    """Raises ``InvalidInput`` for a name that is not known here, or whose package is missing."""
    installed = {point.name: point for point in entry_points(group=GROUP)}
    if name in _BUILT_IN:
        module, kind = _BUILT_IN[name]
        try:
            return cast(Scorer, getattr(import_module(module), kind)())
        except ImportError as error:
            package = str(error.name).replace("_", "-")
            raise InvalidInput(
                f"{name} needs {package}, which is not installed",
                field="--with",
                hint=f"pip install {package}",
            ) from None
    if name in installed:
        return _load(installed[name])
    known = sorted({MANIFEST, *_BUILT_IN, *installed})
    close = difflib.get_close_matches(name, known, n=1)
    raise InvalidInput(
        f"{name[:40]!r} is not a scorer that is known here",
        field="--with",
        hint=f"did you mean {close[0]!r}?" if close else f"known here: {', '.join(known)}",
    )


def _load(point: EntryPoint) -> Scorer:
    try:
        return cast(Scorer, point.load()())
    except FarmError:
        raise
    except Exception as error:  # whatever the package does when it is imported
        raise FarmError(f"the scorer {point.name!r} cannot be loaded: {error!r}") from error
