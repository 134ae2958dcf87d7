"""Python SDK of the render farm: ``Farm`` for scripts, ``AsyncFarm`` for asyncio."""

from farm.errors import (
    AllRejected,
    Conflict,
    FarmError,
    InvalidInput,
    JobCancelled,
    JobFailed,
    NotAllowed,
    NotFound,
    OverQuota,
    QueueFull,
    RejectedRender,
    RenderError,
    StoreError,
    TimedOut,
    TooLarge,
    Unavailable,
)
from farm_client.async_job import AsyncJob
from farm_client.farm import AsyncFarm, Farm
from farm_client.fetch import Fetched
from farm_client.image import AsyncImage, Image
from farm_client.job import Job
from farm_client.models import (
    Asset,
    Difference,
    Estimate,
    JobStatus,
    NamedAdapter,
    Preview,
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
    "Conflict",
    "Difference",
    "Estimate",
    "Farm",
    "FarmError",
    "Fetched",
    "Image",
    "InvalidInput",
    "Job",
    "JobCancelled",
    "JobFailed",
    "JobStatus",
    "NamedAdapter",
    "NotAllowed",
    "NotFound",
    "OverQuota",
    "Preview",
    "QueueFull",
    "RejectedRender",
    "Removed",
    "RenderError",
    "StoreError",
    "TimedOut",
    "TooLarge",
    "Unavailable",
    "Usage",
    "Verified",
    "Why",
    "dataset",
]
