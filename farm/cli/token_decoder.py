"""What makes pictures of token ids, for the commands that need pictures."""

import itertools
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeVar

from farm.cli.output import say_note
from farm.errors import InvalidInput

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from farm.checkpoints.inspect import Checkpoint
    from farm.formats.picture_file import Facts


TOGETHER_TOKENS = 8192  # as many as the engine decodes at a time

Picture = TypeVar("Picture")  # whatever names it


class TokenDecoder:
    """Loads a checkpoint when it first meets its tokens.

    Args:
        names: of checkpoints, as ``farm render`` takes them; else those that come with the farm.
        threads: of torch; 0 stands for all cores but one.
    """

    def __init__(self, names: Iterable[str], threads: int) -> None:
        self._names = list(names)
        self._threads = threads
        self._known: dict[str, Checkpoint] = {}
        self._engines: dict[str, Any] = {}

    def __call__(
        self, pictures: "Iterable[tuple[Picture, Facts]]"
    ) -> "Iterator[tuple[Picture, Facts, NDArray[np.uint8]]]":
        """Each with its pixels (height, width, 3). Neighbours that are alike are decoded together,
        for the engine of a GPU takes as long for one.

        Raises:
            InvalidInput: the checkpoint is not here, or a picture was inpainted.
        """
        import numpy as np

        kinds = itertools.groupby(
            pictures, lambda one: (one[1].spec.checkpoint, one[1].tokens.shape)
        )
        for (checkpoint, (rows, columns)), alike in kinds:
            while some := list(islice(alike, max(TOGETHER_TOKENS // (rows * columns), 1))):
                for _, facts in some:
                    self.check(facts.spec.mode, checkpoint, facts.numerics)
                tokens = np.stack([facts.tokens for _, facts in some])
                pixels = self._engines[checkpoint].decode(tokens)
                for (picture, facts), one in zip(some, pixels, strict=True):
                    yield picture, facts, one

    def check(self, mode: str, checkpoint: str, numerics: str) -> None:
        """Raises what decoding such a picture would raise; the checkpoint is loaded then."""
        if mode == "inpaint":
            raise InvalidInput(
                "inpainted pictures cannot be decoded from tokens alone: outside the mask they are "
                "made of the picture that was given",
                field="tokens",
                hint="--as tokens, or render them to another sink",
            )
        if checkpoint in self._engines:
            return
        engine = self._engines[checkpoint] = self._load(checkpoint)
        if engine.numerics != numerics:
            say_note(
                f"tokens of {checkpoint} are decoded here in another numerics class than they were "
                "made in, so the pixels may differ in the last bit"
            )

    def _load(self, checkpoint: str) -> Any:
        from farm.checkpoints.inspect import inspect_checkpoint
        from farm.checkpoints.references import built_in
        from farm_workers.worker.load_engine import load_engine

        if not self._known:
            named = map(inspect_checkpoint, self._names or built_in())
            self._known = {one.info.name: one for one in named}
        if checkpoint not in self._known:
            raise InvalidInput(
                f"the tokens are those of {checkpoint}, which is not here",
                field="--checkpoint",
                hint="name its directory, or export --as tokens",
            )
        return load_engine(self._known[checkpoint], threads=self._threads)
