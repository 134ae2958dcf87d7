"""What a scheduler must be told, read once at its start."""

from pydantic import AliasChoices, Field

from farm.settings import FarmSettings, Names
from farm.worker_group import WorkerGroup, grown, parse_groups


class SchedulerSettings(FarmSettings):
    """``ray_address`` empty means that workers come by themselves."""

    lease_ms: int = Field(default=10_000, ge=1_000, le=600_000)
    ray_address: str = Field(
        default="", validation_alias=AliasChoices("ray_address", "RAY_ADDRESS")
    )
    checkpoints: Names = ()
    workers: str = "1"  # a number, or groups: farm.worker_group
    min_workers: int | None = Field(default=None, ge=0)  # by default as many as ``workers``
    max_workers: int | None = Field(default=None, ge=0)
    target_wait_seconds: float = Field(default=60.0, gt=0)  # that queued work takes at most
    worker_gpus: float = Field(default=0, ge=0)  # that one worker reserves
    worker_cpus: float = Field(default=1, ge=0)
    page: str = ""  # the farm's page, for those who look at Ray's dashboard
    end_workers: bool = False  # with the scheduler; otherwise they outlive it

    @property
    def groups(self) -> tuple[WorkerGroup, ...]:
        """Raises ``InvalidInput`` if they are not understood."""
        groups = parse_groups(
            self.workers, self.checkpoints, gpus=self.worker_gpus, cpus=self.worker_cpus
        )
        if self.min_workers is None and self.max_workers is None:
            return groups
        return tuple(grown(group, self.min_workers, self.max_workers) for group in groups)
