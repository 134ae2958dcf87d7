"""A batch in one call of a library, where its rows keep the bits that they have alone."""

import functools
from collections.abc import Callable

import torch
from torch import Tensor

MOST_TOGETHER = 1 << 20  # numbers of a batch; rows of larger ones have work enough by themselves


def by_row(function: Callable[..., Tensor], x: Tensor, *shared: Tensor | None) -> Tensor:
    """``function`` of a batch ``x``, of which every row gets the bits that it has by itself.

    A library picks its kernel by the size of the whole. So it is tried whether rows may go through
    it together: once for each shape, with random numbers.
    """
    shapes = tuple(None if one is None else one.shape for one in (x, *shared))
    place = x.dtype, x.device, torch.get_num_threads()
    if len(x) == 1 or (x.numel() <= MOST_TOGETHER and _alike(function, shapes, place)):
        return function(x, *shared)
    return torch.cat([function(row, *shared) for row in x.split(1)])


@functools.lru_cache(maxsize=4096)
def _alike(
    function: Callable[..., Tensor],
    shapes: tuple[torch.Size | None, ...],
    place: tuple[torch.dtype, torch.device, int],
) -> bool:
    # What a kernel does follows from shapes alone, and another order of its sums shows in
    # thousands of random numbers.
    generator = torch.Generator().manual_seed(0)
    x, *shared = (
        None if one is None else torch.randn(one, generator=generator).to(place[1], place[0])
        for one in shapes
    )
    alone = [function(row.clone(), *shared) for row in x.split(1)]  # type: ignore[union-attr]
    return torch.equal(function(x, *shared), torch.cat(alone))
