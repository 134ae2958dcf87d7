"""The outside view after a storm: acknowledgements, the store's files, the API's last answers.

It shares no code with the queue, the scheduler, the worker or the publisher: parts are read with
pyarrow, pictures with Pillow.
"""

import hashlib
import io
import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from random import Random

import pyarrow.parquet as pq
from PIL import Image
from workload import planned_job

from farm_client import Farm, JobStatus

FACTS = "amused-farm"  # where a PNG carries what it shows
SAMPLE = 300  # jobs whose pictures are asked for over the API as well


def job_folder(store: Path, job: str) -> Path:
    return store / hashlib.sha256(job.encode()).hexdigest()[:2] / job


def check(farm: Farm, store: Path, acknowledged: Mapping[int, str], jobs: int) -> list[str]:
    """One line for each broken promise."""
    problems = [
        f"{number} was never acknowledged" for number in range(jobs) if number not in acknowledged
    ]
    twice = [job for job, times in Counter(acknowledged.values()).items() if times > 1]
    problems += [f"{job} stands for more than one submission" for job in twice]
    told = {status.id: status for status in farm.jobs()}
    problems += [
        f"{job} exists and was never submitted" for job in told.keys() - set(acknowledged.values())
    ]
    sample = set(Random(0).sample(sorted(acknowledged), min(SAMPLE, len(acknowledged))))
    for number, job in acknowledged.items():
        if job not in told:
            problems.append(f"{job} was acknowledged and is lost")
            continue
        found = _of_job(store, number, jobs, told[job])
        if number in sample:
            found = [*found, *_over_the_api(farm, number, jobs, job)]
        problems += [f"{job} (storm {number}): {line}" for line in found]
    return problems


def _of_job(store: Path, number: int, jobs: int, status: JobStatus) -> Iterator[str]:
    planned = planned_job(number, jobs)
    pictures, bad = planned.pictures, 0 if planned.bad is None else 1
    counts = status.images
    if status.state != "done":
        yield f"it is {status.state}: {status.reason}"
        return
    if (counts.total, counts.done, counts.failed) != (pictures, pictures - bad, bad):
        yield f"{counts.done} done and {counts.failed} failed of {counts.total}, not {pictures}"
    folder = job_folder(store, status.id)
    success = json.loads((folder / "_SUCCESS").read_text())
    files = {
        path.relative_to(store).as_posix() for path in folder.glob("data/**/*") if path.is_file()
    }
    parts = {
        path.relative_to(store).as_posix()
        for path in folder.glob("manifest/**/*")
        if path.is_file()
    }
    if {part["key"] for part in success["parts"]} != parts:
        yield "_SUCCESS and the parts in the store differ"
    rows = defaultdict(list)
    for part in success["parts"]:
        data = (store / part["key"]).read_bytes()
        if hashlib.sha256(data).hexdigest() != part["sha256"]:
            yield f"{part['key']} is not what _SUCCESS says"
        for row in pq.read_table(io.BytesIO(data)).to_pylist():
            rows[row["render"], row["image"]].append(row)
    images = pictures // len(planned.prompts)
    wanted = {(render, image) for render in range(len(planned.prompts)) for image in range(images)}
    if rows.keys() != wanted:
        yield f"the manifest has {sorted(rows)}"
    for (render, image), found in rows.items():
        if len(found) != 1:
            yield f"picture {render}-{image} was published {len(found)} times"
        row = found[0]
        if (row["error"] is not None) != (render == planned.bad):
            yield f"picture {render}-{image}: {row['error'] or 'it did not fail'}"
        if row["file"] is None:
            if row["error"] is None:
                yield f"picture {render}-{image} has neither a file nor an error"
            continue
        if row["file"] not in files:
            yield f"{row['file']} is missing"
            continue
        files.discard(row["file"])
        data = (store / row["file"]).read_bytes()
        if hashlib.sha256(data).hexdigest() != row["sha256"]:
            yield f"{row['file']} is not what the manifest says"
        picture = Image.open(io.BytesIO(data))
        picture.load()
        facts = json.loads(picture.text[FACTS])
        # Prompts that come together have the same seed; the pictures of a prompt count it up.
        told = (facts["spec"]["prompt"], facts["seed"], row["seed"])
        if told != (planned.prompts[render], number + image, number + image):
            yield f"{row['file']} shows {told}"
    if files:
        yield f"nobody knows of {sorted(files)}"


def _over_the_api(farm: Farm, number: int, jobs: int, job: str) -> Iterator[str]:
    planned = planned_job(number, jobs)
    pictures = Counter((one.render, one.image) for one in farm.job(job).images(follow=False))
    if len(pictures) != planned.pictures or set(pictures.values()) != {1}:
        yield f"the API lists {sorted(pictures)}"
