"""The checkpoints that a request can name."""

import difflib
import time
from collections.abc import Callable, Iterable

from farm.errors import InvalidInput
from farm.spec import CheckpointInfo

REFRESH_SECONDS = 5.0
RETRY_SECONDS = 0.5  # for a name that is not known: its worker may have come a moment ago


class CheckpointRegistry:
    """Checkpoints named at the start, and those that workers held since.

    Of several revisions of one id, those that living workers hold go before the others: a farm
    whose workers were replaced by some with a newer revision means that one. ``live`` asks the
    workers; it is called at most every few seconds.
    """

    def __init__(
        self,
        infos: Iterable[CheckpointInfo] = (),
        live: Callable[[], Iterable[CheckpointInfo]] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._known = {info.name: info for info in infos}
        self._live = live
        self._clock = clock
        self._asked = float("-inf")

    def all(self) -> list[CheckpointInfo]:
        """The first one is the default."""
        self._refresh(REFRESH_SECONDS)
        return list(self._known.values())

    def find(self, name: str | None) -> CheckpointInfo:
        """By ``id@revision``, by id, or by the id's last part."""
        if name is not None and name in self._known:
            return self._known[name]
        found = self._match(name)
        if found is None and self._refresh(RETRY_SECONDS):
            found = self._match(name)
        if found is not None:
            return found
        infos = self.all()
        if not infos or name is None:
            raise InvalidInput(
                "this farm has no checkpoint yet",
                field="checkpoint",
                hint="start it with --checkpoint, or wait for a worker",
            )
        ids = sorted({info.id for info in infos})
        close = difflib.get_close_matches(name, ids, n=1, cutoff=0.5)
        hint = f"did you mean {close[0]!r}?" if close else f"there are: {', '.join(ids[:8])}"
        raise InvalidInput(
            f"this farm has no checkpoint {name[:80]!r}", field="checkpoint", hint=hint
        )

    def _match(self, name: str | None) -> CheckpointInfo | None:
        infos = self.all()
        if name is None:
            return infos[0] if infos else None
        for info in infos:
            if name in (info.name, info.id):
                return info
        last = [info for info in infos if info.id.rsplit("/", 1)[-1] == name]
        return last[0] if len({info.id for info in last}) == 1 else None

    def _refresh(self, seconds: float) -> bool:
        """Ask the workers unless that was done within ``seconds``; whether they were asked."""
        if self._live is None or self._clock() - self._asked < seconds:
            return False
        self._asked = self._clock()
        known = dict(self._known)
        alive = {known.setdefault(info.name, info).name for info in self._live()}
        revisions: dict[str, list[CheckpointInfo]] = {}
        for info in known.values():
            revisions.setdefault(info.id, []).append(info)
        self._known = {
            info.name: info
            for one in revisions.values()
            for info in sorted(one, key=lambda info: info.name not in alive)
        }
        return True
