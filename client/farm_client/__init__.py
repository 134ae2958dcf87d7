"""Python SDK of the render farm: ``Farm`` for scripts, ``AsyncFarm`` for asyncio."""

from farm.errors import AllRejected, FarmError, RejectedRender
from farm_client.farm import AsyncFarm, Farm
from farm_client.fetch import Fetched
from farm_client.image import AsyncImage, Image
from farm_client.job import AsyncJob, Job
from farm_client.models import (
    Asset,
    Difference,
    Estimate,
    JobStatus,
    NamedAdapter,
    Removed,
    Usage,
    Verified,
    Why,
)
from farm_client.training import dataset

__all__ = [
    "AllRejected",
    "Asset",
    "AsyncFarm",
    "AsyncImage",
    "AsyncJob",
    "Difference",
    "Estimate",
    "Farm",
    "FarmError",
    "Fetched",
    "Image",
    "Job",
    "JobStatus",
    "NamedAdapter",
    "RejectedRender",
    "Removed",
    "Usage",
    "Verified",
    "Why",
    "dataset",
]
