"""``dataset``: a job's pictures for a training loop. Torch is imported when it is called."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from farm.errors import InvalidInput
from farm_client.farm import Farm
from farm_client.fetch import PARALLEL
from farm_client.job import Job

if TYPE_CHECKING:
    from farm_client.job_dataset import JobDataset


def dataset(
    job: Job | str,
    *,
    transform: Callable[[dict[str, Any]], Any] | None = None,
    follow: bool = True,
    rank: int | None = None,
    ranks: int | None = None,
    parallel: int = PARALLEL,
) -> "JobDataset":
    """A torch ``IterableDataset`` over what the job has stored: as it comes, and after its end.

    Args:
        job: or its id, at the farm that ``Farm()`` finds.
        transform: makes what is given of a row; see ``JobDataset`` for what a row has. A
            ``DataLoader`` needs one, or a ``collate_fn``: it cannot put whole rows together.
        follow: wait for rows until the job ends; else stop after those that are there.
        rank: of this process among several that share the rows; else as ``torch.distributed`` says.
            Accelerate and the Trainer of transformers divide rows themselves: 0, of 1 ``ranks``.
        ranks: how many there are.
        parallel: pictures fetched at a time.

    Raises:
        InvalidInput: torch, numpy or Pillow is not installed.
        NotFound: there is no such job.
    """
    try:
        from farm_client.job_dataset import JobDataset, rank_and_ranks
    except ImportError as error:
        raise InvalidInput(
            f"{error.name} is needed to read a job for training",
            hint="pip install torch numpy pillow",
        ) from None
    found = rank_and_ranks()
    held = job if isinstance(job, Job) else Farm().job(job)
    held.status()  # a farm that has answered is waited for in each epoch, whatever reads it
    return JobDataset(
        held.connection,
        held.id,
        transform=transform,
        follow=follow,
        rank=found[0] if rank is None else rank,
        ranks=found[1] if ranks is None else ranks,
        parallel=parallel,
    )
