"""The checkpoints that a request can name."""

import difflib
import time
from collections.abc import Callable, Iterable

from farm.errors import InvalidInput
from farm.spec import CheckpointInfo

REFRESH_SECONDS = 5.0


class CheckpointRegistry:
    """Checkpoints named at the start, and those that living workers hold.

    ``live`` asks the workers; it is called at most every few seconds.
    """

    def __init__(
        self,
        infos: Iterable[CheckpointInfo] = (),
        live: Callable[[], Iterable[CheckpointInfo]] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._fixed = {info.name: info for info in infos}
        self._known = dict(self._fixed)
        self._live = live
        self._clock = clock
        self._asked = float("-inf")

    def all(self) -> list[CheckpointInfo]:
        """The first one is the default."""
        if self._live is not None and self._clock() - self._asked >= REFRESH_SECONDS:
            self._asked = self._clock()
            for info in self._live():
                self._known.setdefault(info.name, info)
        return list(self._known.values())

    def find(self, name: str | None) -> CheckpointInfo:
        """By ``id@revision``, by id, or by the id's last part."""
        if name is not None and name in self._known:
            return self._known[name]
        infos = self.all()
        if not infos:
            raise InvalidInput(
                "this farm has no checkpoint yet",
                field="checkpoint",
                hint="start it with --checkpoint, or wait for a worker",
            )
        if name is None:
            return infos[0]
        for info in infos:
            if name in (info.name, info.id):
                return info
        last = [info for info in infos if info.id.rsplit("/", 1)[-1] == name]
        if len(last) == 1:
            return last[0]
        ids = sorted({info.id for info in infos})
        close = difflib.get_close_matches(name, ids, n=1, cutoff=0.5)
        hint = f"did you mean {close[0]!r}?" if close else f"there are: {', '.join(ids[:8])}"
        raise InvalidInput(
            f"this farm has no checkpoint {name[:80]!r}", field="checkpoint", hint=hint
        )
