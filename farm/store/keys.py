"""The keys of everything that the farm stores, made from ids, numbers and digests.

What a user wrote stands in none of them as text.
"""

import hashlib


def prefix(job: str) -> str:
    """Start of all keys of a job; two hash digits first spread jobs over S3's partitions."""
    return f"{hashlib.sha256(job.encode()).hexdigest()[:2]}/{job}/"


def header(job: str) -> str:
    return prefix(job) + "job.json"


def closed(job: str) -> str:
    """Of the record that says how a job that came in by pieces was closed."""
    return prefix(job) + "closed.json"


def cancelled(job: str) -> str:
    """Of an object that is there if the job was cancelled."""
    return prefix(job) + "_CANCELLED"


def removed(job: str) -> str:
    """Of an object that is there while the job's others are being deleted."""
    return prefix(job) + "_REMOVED"


def chunks(job: str) -> str:
    """Start of the keys of the renders of a job, task by task."""
    return prefix(job) + "chunks/"


def chunk(job: str, number: int) -> str:
    return f"{chunks(job)}{number:08d}.json"


def all_data(job: str) -> str:
    """Start of the keys of all objects with pictures of a job."""
    return prefix(job) + "data/"


def data(job: str, generation: int) -> str:
    """Start of the keys of those that one generation adds."""
    return f"{all_data(job)}{generation}/"


def part(job: str, generation: int, number: int) -> str:
    """Of the manifest of one task."""
    return f"{prefix(job)}manifest/{generation}/part-{number:08d}.parquet"


def early(job: str) -> str:
    """Start of the keys of what is told of tasks that still run."""
    return prefix(job) + "early/"


def success(job: str, generation: int = 0) -> str:
    """Of the object whose presence says that a generation of the job has ended; it lists every part
    up to that generation."""
    return prefix(job) + "_SUCCESS" + (f".{generation}" if generation else "")


def repairs(job: str) -> str:
    """Start of the keys of what ``farm verify --repair`` did."""
    return prefix(job) + "repairs/"


def all_scores(job: str) -> str:
    """Start of the keys of all columns that were added afterwards."""
    return prefix(job) + "scores/"


def scores(job: str, scorer: str, sha256: str) -> str:
    """Of a part of them, by its content."""
    return f"{all_scores(job)}{scorer}/{sha256}.parquet"


def assets(tenant: str) -> str:
    """Start of the keys of a tenant's input files."""
    return f"assets/{_tenant(tenant)}/"


def asset(tenant: str, sha256: str) -> str:
    return assets(tenant) + sha256


def adapters(tenant: str) -> str:
    """Start of the keys of the adapters that a tenant has named."""
    return f"adapters/{_tenant(tenant)}/"


def adapter(tenant: str, name: str) -> str:
    """Where it lies what an adapter's name stands for; the name is in the key as hex digits."""
    return f"{adapters(tenant)}{name.encode().hex()}.json"


def adapter_name(key: str) -> str:
    """The name in such a key."""
    return bytes.fromhex(key.rpartition("/")[2].removesuffix(".json")).decode()


def checkpoint(name: str, revision: str) -> str:
    """Start of the keys of a checkpoint's files."""
    return f"checkpoints/{name}/{revision}/"


def checkpoint_piece(name: str, revision: str, sha256: str) -> str:
    """Of a piece of one of its files, by its content."""
    return f"{checkpoint(name, revision)}pieces/{sha256}"


def _tenant(tenant: str) -> str:
    return hashlib.sha256(tenant.encode()).hexdigest()[:12]
