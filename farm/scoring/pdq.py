"""``pdq``: Meta's perceptual hash, https://github.com/facebook/ThreatExchange/tree/main/pdq.

Two pictures look alike if few of the 256 bits of their hashes differ; 31 is Meta's usual bound.
"""

from collections.abc import Sequence

import numpy as np
import pdqhash
from PIL.Image import Image

from farm.scoring.scorer import Values


class Pdq:
    """``pdq``, 64 hexadecimal digits, and ``pdq_quality``, 0 to 100: below 50 a picture is so plain
    that its hash says little."""

    def score(self, pictures: Sequence[Image]) -> Sequence[Values]:
        return [self._one(np.asarray(picture)) for picture in pictures]

    def _one(self, pixels: np.ndarray) -> Values:
        bits, quality = pdqhash.compute(pixels)
        return {"pdq": np.packbits(bits).tobytes().hex(), "pdq_quality": int(quality)}
