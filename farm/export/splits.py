"""Splits of a data set, by a hash of the prompt."""

import hashlib
import re
from typing import NamedTuple

from farm.errors import InvalidInput

_NAME = re.compile(r"[a-z0-9_]+")


class Splits(NamedTuple):
    """Names with their shares, which add up to 1.

    All pictures of one prompt are in one split, whatever else differs between them, and a picture
    stays where it is when the data set grows.
    """

    shares: tuple[tuple[str, float], ...]

    @classmethod
    def parse(cls, text: str | None) -> "Splits":
        """From ``train=0.9,test=0.1``; None is one split, ``train``.

        Raises:
            InvalidInput: it cannot be read, or does not add up.
        """
        if text is None:
            return cls((("train", 1.0),))
        shares: dict[str, float] = {}
        for part in text.split(","):
            name, _, share = part.strip().partition("=")
            if name in shares or not _NAME.fullmatch(name):
                raise _wrong(f"{name[:40]!r} cannot be the name of a split, or stands twice")
            try:
                shares[name] = float(share)
            except ValueError:
                raise _wrong(f"{share[:40]!r} is not a share") from None
        if not all(0 < share <= 1 for share in shares.values()):
            raise _wrong("a share is above 0 and at most 1")
        if abs(sum(shares.values()) - 1) > 1e-9:
            raise _wrong(f"the shares add up to {sum(shares.values()):g}, not to 1")
        return cls(tuple(shares.items()))

    def __str__(self) -> str:
        """As ``parse`` takes it; the order decides where a prompt belongs."""
        return ",".join(f"{name}={share!r}" for name, share in self.shares)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(name for name, _ in self.shares)

    def of(self, prompt: str) -> str:
        """The split of a prompt."""
        digest = hashlib.sha256(prompt.encode(errors="surrogatepass")).digest()
        place = int.from_bytes(digest[:7], "big") / 2**56
        for name, share in self.shares:
            place -= share
            if place < 0:
                return name
        return self.names[-1]  # shares that add up to a little less than 1


def _wrong(message: str) -> InvalidInput:
    return InvalidInput(message, field="--split", hint="write it like train=0.9,test=0.1")
