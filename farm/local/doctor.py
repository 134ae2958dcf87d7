"""``farm doctor``: checks of everything that a farm depends on."""

import contextlib
import enum
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import psutil
import redis

from farm.addresses import reachable, without_secrets
from farm.checkpoints.inspect import inspect_checkpoint
from farm.errors import FarmError
from farm.ingest.job_record import JobRecord
from farm.job import is_job_id, job_id
from farm.local.embedded import RAY_FILE
from farm.local.probes import answers, replies, serves, silent_parts
from farm.queue import JobStatus, Queue, check_server, connect, notice, placed_workers
from farm.queue.connection import explain
from farm.settings import KeepingSettings, load
from farm.store import Store, keys, open_store
from farm.store.local import LocalStore
from farm.store.probing import probe

MAX_TOLD = 5  # lines of what is amiss with the queue
LEAST_DISK_BYTES = 2**30  # below it a farm soon stops
LEAST_MEMORY_BYTES = 2**29
_CGROUP = "/sys/fs/cgroup/memory"
SCARCE_DISK_BYTES = 10 * 2**30
CLOCK_WARN_SECONDS = 2.0
CLOCK_FAIL_SECONDS = 60.0  # stores refuse signatures that are a few minutes off


class Health(enum.StrEnum):
    OK = "ok"
    WARN = "warn"  # works, but should be known
    FAIL = "fail"


class Finding(NamedTuple):
    check: str
    health: Health
    told: str
    hint: str | None = None


class Patient(NamedTuple):
    """Where the parts of a farm are."""

    data: Path
    url: str  # of its gateway
    redis_url: str
    store: str
    ray_address: str  # empty: the one that ``farm up`` starts
    checkpoints: Sequence[str]


def examine(patient: Patient) -> Iterator[Finding]:
    """Every check; one that breaks off is a finding like any other."""
    for name, check in _CHECKS.items():
        try:
            for health, told, hint in check(patient):
                yield Finding(name, health, told, hint)
        except (FarmError, redis.RedisError) as error:
            known = error if isinstance(error, FarmError) else explain(error)
            yield Finding(name, Health.FAIL, known.message, known.hint)


_Told = Iterator[tuple[Health, str, str | None]]


def _gateway(patient: Patient) -> _Told:
    if not answers(f"{patient.url}/healthz"):
        yield Health.FAIL, f"no farm answers at {patient.url}", "start one with: farm up"
    elif not answers(f"{patient.url}/readyz"):
        yield (
            Health.FAIL,
            f"the farm at {patient.url} answers, but would not run jobs",
            "the lines below say what is missing; a worker may still be loading",
        )
    else:
        yield Health.OK, f"{patient.url} is ready", None


def _server(patient: Patient) -> _Told:
    """Append-only file, eviction, version and memory."""
    if not replies(patient.redis_url):
        yield (
            Health.FAIL,
            f"no Redis or Valkey server answers at {_shown(patient.redis_url)}",
            "farm up starts one; is REDIS_URL right?",
        )
        return
    client = connect(patient.redis_url)
    facts = check_server(client, allow_volatile=False)
    # Its disk or memory may be full, or it may be a replica.
    client.set(f"{{{os.environ.get('FARM_NAME', 'farm')}}}:doctor", 1, ex=60)
    yield Health.OK, f"version {facts.version} keeps what it accepted", None
    for note in facts.notes:
        yield Health.WARN, note, None


def _queue(patient: Patient) -> _Told:
    """The queue against itself, and against the jobs in a store that can be listed quickly."""
    if not serves(patient.redis_url):
        return
    queue = Queue(connect(patient.redis_url), farm=os.environ.get("FARM_NAME", "farm"))
    store = open_store(patient.store, attempts=1)
    wrong = amiss(queue, store)
    if wrong:
        for line in wrong[:MAX_TOLD]:
            yield Health.FAIL, line, "farm down, then farm doctor --rebuild fills it from the store"
    elif isinstance(store, LocalStore):
        yield Health.OK, "its counters are right, and it knows every job in the store", None
    else:
        yield Health.OK, "its counters are right", None


def amiss(queue: Queue, store: Store) -> list[str]:
    """What of a queue's data is lost or contradicts itself or the store, a line each."""
    try:
        found = queue.check(repair=False)
        if isinstance(store, LocalStore):
            found += _unlike(queue, store)
    except (FarmError, ValueError, LookupError, TypeError) as error:
        # Of bytes that are not what was written; a missing field says only its name.
        told = error if isinstance(error, FarmError) else repr(error)
        return [f"its records cannot be read: {told}"]
    return found


def _unlike(queue: Queue, store: LocalStore) -> Iterator[str]:
    """Jobs that the queue does not have as the store has them."""
    listed: dict[str, dict[str, JobStatus]] = {}
    # What the gateway has set, which need not be what this process's environment says.
    days = queue.retention_days() or load(KeepingSettings).retention_days
    for job in recent(store, days):
        try:
            record = JobRecord.model_validate_json(store.get(keys.header(job)))
        except ValueError:
            yield f"the record of job {job} in the store is damaged"
            continue
        if record.tenant not in listed:
            listed[record.tenant] = {one.id: one for one in queue.all_jobs(record.tenant)}
        status = listed[record.tenant].get(job)
        if status is None and store.size(keys.removed(job)) is None:
            yield f"it does not know job {job}"
        if status is None:
            continue
        told = (status.name, status.max_failed, status.priority, status.format)
        kept = [record.options.get(one) for one in ("name", "max_failed", "priority", "format")]
        if list(told) != kept:
            yield f"it knows job {job} with other options"


def recent(store: LocalStore, days: float) -> Iterator[str]:
    """Jobs in the store that the queue, which keeps them for so long, cannot have forgotten."""
    since = job_id(time.time() - (days - 1) * 86400)
    for job in store.jobs():
        if is_job_id(job) and job > since:
            yield job


def _workers(patient: Patient) -> _Told:
    """Those that have a session, and what a scheduler or a crash reporter last said of others."""
    if not serves(patient.redis_url):
        return
    queue = Queue(connect(patient.redis_url), farm=os.environ.get("FARM_NAME", "farm"))
    sessions, told = queue.sessions(), notice.read(queue)
    count = len(sessions)
    if told:
        yield (Health.WARN if count else Health.FAIL), told, None
    for one in sessions:
        if one.problem:
            hint = "does its host reach the store? farm workers drain gives its tasks to others"
            yield Health.WARN, f"{one.worker}: {one.problem}", hint
    placed = placed_workers.read(queue)
    for worker in placed:
        if worker.missing:
            yield Health.WARN, str(worker), None
    if count:
        yield Health.OK, f"{count} at work or ready", None
    elif not told and not placed:
        yield Health.WARN, "none has a session", "farm up or farm scheduler starts them"


def _memory(_: Patient) -> _Told:
    """Ray ends workers of a machine that has less than a twentieth of its memory left."""
    memory = psutil.virtual_memory()
    free, total = memory.available, memory.total
    with contextlib.suppress(OSError, ValueError):  # a container's limit, where there is one
        limit, used = (int(Path(f"{_CGROUP}.{name}").read_text()) for name in ("max", "current"))
        # The kernel gives what it keeps of files up when memory is asked for.
        stat = dict(line.split() for line in Path(f"{_CGROUP}.stat").read_text().splitlines())
        used -= int(stat.get("inactive_file", 0))
        free, total = min(free, limit - used), min(total, limit)
    told = f"{free / 2**30:.1f} of {total / 2**30:.1f} GiB free"
    if free < max(LEAST_MEMORY_BYTES, total // 20):
        yield Health.FAIL, told, "workers may be killed; run fewer, or end other programs"
    else:
        yield Health.OK, told, None


def _store(patient: Patient) -> _Told:
    store = open_store(patient.store, attempts=1)
    if not patient.data.exists() and isinstance(store, LocalStore) and not store.made:
        yield Health.WARN, f"{without_secrets(patient.store)} is not there yet", "farm up makes it"
        return
    probe(store)
    yield (
        Health.OK,
        f"{without_secrets(patient.store)}: one of 16 writers of the same object wins",
        None,
    )


def _ray(patient: Patient) -> _Told:
    if patient.ray_address:
        where = patient.ray_address.removeprefix("ray://")
        if reachable(where):
            yield Health.OK, f"{where} listens", None
        else:
            yield Health.FAIL, f"nothing listens at {where}", "is RAY_ADDRESS right?"
        return
    told = patient.data / "run" / RAY_FILE
    if not told.exists():
        yield Health.WARN, "does not run on this machine", "farm up starts it"
    elif silent := silent_parts(json.loads(told.read_text())):
        yield (
            Health.FAIL,
            f"no answer from its {' and '.join(silent)}, so no worker can start",
            "farm up starts Ray again within a minute; logs/ray.log says why it ended",
        )
    else:
        yield Health.OK, "runs on this machine", None


def _checkpoints(patient: Patient) -> _Told:
    if not patient.checkpoints:
        yield (
            Health.WARN,
            "none is set",
            "farm up makes a tiny one; FARM_CHECKPOINTS names others",
        )
    for name in patient.checkpoints:
        info = inspect_checkpoint(name).info
        yield Health.OK, f"{info.name}: every file is there and whole", None


def _disk(patient: Patient) -> _Told:
    folder = next(one for one in (patient.data, *patient.data.parents) if one.exists())
    free = shutil.disk_usage(folder).free
    told = f"{free / 2**30:.1f} GiB free at {folder}"
    if free < LEAST_DISK_BYTES:
        yield Health.FAIL, told, "free some space; without it the queue and the store stop"
    elif free < SCARCE_DISK_BYTES:
        yield Health.WARN, told, "free some space before a large job"
    else:
        yield Health.OK, told, None
    if not os.access(folder, os.W_OK):
        yield Health.FAIL, f"{folder} is not writable", "correct its permissions, or set FARM_DATA"


def _clock(patient: Patient) -> _Told:
    """Redis is the farm's clock; links and deadlines use this machine's."""
    told = None
    with contextlib.suppress(redis.RedisError):
        if serves(patient.redis_url):
            told = connect(patient.redis_url).time()
    if told is None:
        yield Health.WARN, "there is no server to compare it with", None
        return
    seconds, microseconds = told
    off = abs(time.time() - seconds - microseconds / 1e6)
    text = f"{off:.1f} s from the server's"
    if off > CLOCK_FAIL_SECONDS:
        yield Health.FAIL, text, "set the clock (chronyc makestep, or timedatectl set-ntp true)"
    elif off > CLOCK_WARN_SECONDS:
        yield Health.WARN, text, "deadlines and links are off by as much; use NTP"
    else:
        yield Health.OK, text, None


_CHECKS: dict[str, Callable[[Patient], _Told]] = {
    "gateway": _gateway,
    "server": _server,
    "queue": _queue,
    "store": _store,
    "ray": _ray,
    "workers": _workers,
    "memory": _memory,
    "checkpoints": _checkpoints,
    "disk": _disk,
    "clock": _clock,
}


def _shown(url: str) -> str:
    """Without a password."""
    parts = urlsplit(url)
    return url.replace(f":{parts.password}@", ":…@") if parts.password else url
