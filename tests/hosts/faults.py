"""A farm on four hosts, and what happens to it: ``make cluster``.

    python tests/hosts/faults.py [--pictures 60] [--cuts 5,30,120] [--ray-tls]

A job in three modes runs while each fault happens. A line for each says how long it took until
what the lost worker held was given back, until both workers were there again, and until the job was
done; how many pictures were lost or stored twice, which must be none; and how many were rendered
again. FARM_CLUSTER_SERVER names a Valkey or Redis server that knows TLS; without it the queue's
connections are not encrypted.
"""

import argparse
import json
import logging
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from cluster import WORKER_HOSTS, Cluster
from network import Host, Network, wait_until, why_not
from PIL import Image, ImageDraw

JOB_SECONDS = 900.0
AWAY_SECONDS = 10.0  # that a killed host is off

log = logging.getLogger("cluster")


class Fault(NamedTuple):
    """``harm`` returns when it is over."""

    name: str
    harm: Callable[[], None]


class Outcome(NamedTuple):
    """What a fault cost."""

    fault: str
    given_back: float | None  # s from its begin; None where no session ended
    workers_back: float  # s from its begin until as many workers as before
    done: float  # s from its begin until the job's end
    lost: int
    twice: int
    again: int  # pictures rendered more than once
    pictures: int

    def __str__(self) -> str:
        given_back = "-" if self.given_back is None else f"{self.given_back:.1f} s"
        return (
            f"{self.fault:<28} given back {given_back:>7}  workers {self.workers_back:6.1f} s  "
            f"job {self.done:6.1f} s  lost {self.lost}  twice {self.twice}  "
            f"again {self.again / self.pictures:.1%}"
        )


class Storm:
    """Faults, one after the other."""

    def __init__(self, cluster: Cluster, pictures: int) -> None:
        self._cluster = cluster
        self._pictures = pictures
        self._input = cluster.folder / "input"
        self._input.mkdir()
        picture = Image.new("RGB", (64, 64), "white")
        ImageDraw.Draw(picture).ellipse((16, 16, 48, 48), fill="red")
        picture.save(self._input / "circle.png")
        mask = Image.new("L", (64, 64), 0)
        ImageDraw.Draw(mask).rectangle((0, 0, 32, 64), fill=255)
        mask.save(self._input / "mask.png")

    def suffer(self, fault: Fault, seed: int) -> Outcome:
        """A job runs while it happens."""
        before, rendered = self._cluster.workers(), self._cluster.rendered()
        job = self._submit(seed)
        wait_until(lambda: self._images(job)["done"] > 0, "the first picture", JOB_SECONDS)
        began = time.monotonic()
        harming = _Thread(fault.harm)
        given_back = workers_back = None
        state = ""
        while harming.running or state not in ("done", "failed") or workers_back is None:
            now = time.monotonic() - began
            if now > JOB_SECONDS:
                raise TimeoutError(f"{fault.name}: the job is {state} after {now:.0f} s")
            workers = self._cluster.workers()
            if given_back is None and {one.session for one in before} - {
                one.session for one in workers
            }:
                given_back = now if workers else None
            enough = len(workers) == len(before)
            workers_back = (workers_back or now) if enough and not harming.running else None
            state = self._state(job)
            time.sleep(0.5)
        return self._outcome(fault, job, rendered, given_back, workers_back, began)

    def _outcome(
        self,
        fault: Fault,
        job: str,
        rendered: int,
        given_back: float | None,
        workers_back: float,
        began: float,
    ) -> Outcome:
        done = time.monotonic() - began
        folder = self._cluster.folder / f"out-{job}"
        self._cluster.client("fetch", job, "-o", str(folder))
        rows = [json.loads(line) for line in (folder / "manifest.jsonl").open()]
        stored = [(row["render"], row["image"]) for row in rows if row.get("error") is None]
        self._cluster.client("verify", job)  # fails where store, queue and manifest differ
        return Outcome(
            fault.name,
            given_back,
            workers_back,
            done,
            lost=self._pictures - len(set(stored)),
            twice=len(stored) - len(set(stored)),
            again=self._cluster.rendered() - rendered - self._pictures,
            pictures=self._pictures,
        )

    def _submit(self, seed: int) -> str:
        picture, mask = str(self._input / "circle.png"), str(self._input / "mask.png")
        modes: list[Mapping[str, str]] = [
            {},
            {"image": picture},
            {"image": picture, "mask_image": mask},
        ]
        requests = [
            {"prompt": "a red circle", "seed": seed * 10**6 + number, **modes[number % 3]}
            for number in range(self._pictures)
        ]
        path = self._input / f"{seed}.jsonl"
        path.write_text("".join(f"{json.dumps(one)}\n" for one in requests))
        return self._cluster.client("submit", str(path), "--strict").split()[0]

    def _status(self, job: str) -> Mapping[str, object]:
        told: Mapping[str, object] = json.loads(self._cluster.client("status", job, "--json"))
        return told

    def _state(self, job: str) -> str:
        try:
            return str(self._status(job)["state"])
        except RuntimeError:  # the gateway is away
            return ""

    def _images(self, job: str) -> Mapping[str, int]:
        images = self._status(job)["images"]
        assert isinstance(images, dict)
        return {"done": images["done"] + images["running_done"]}


def faults(cluster: Cluster, cuts: list[float]) -> list[Fault]:
    """What happens, in this order."""
    network, hosts = cluster.network, cluster.hosts
    data, head, w2 = hosts["data"], hosts["head"], hosts["w2"]

    def cut(seconds: float) -> None:
        network.cut(w2)
        time.sleep(seconds)
        network.mend(w2)

    def kill_host() -> None:
        w2.kill()
        time.sleep(AWAY_SECONDS)
        w2.boot()
        cluster.start_node(w2)

    def disturb() -> None:
        network.disturb(w2, 0.05, 0.05)
        time.sleep(30)
        network.disturb(w2, 0, 0)

    def kill(host: Host, part: str) -> Callable[[], None]:
        def harm() -> None:
            if not host.kill_process(part):
                raise RuntimeError(f"there is no {part} on {host.name}")

        return harm

    def cutting(seconds: float) -> Fault:
        return Fault(f"w2's cable cut for {seconds:g} s", lambda: cut(seconds))

    return [
        Fault("nothing", lambda: None),
        *(cutting(seconds) for seconds in cuts),
        Fault("w2 killed, back after 10 s", kill_host),
        Fault("Ray's head killed", kill(head, "gcs_server")),
        Fault("the scheduler killed", kill(head, "farm scheduler")),
        Fault("the gateway killed", kill(head, "farm.gateway")),
        Fault("the queue's server killed", kill(data, "appendfsync")),
        Fault("the store killed", kill(data, "ministack")),
        Fault("w2 loses 5 %, 50 ms late", disturb),
    ]


class _Thread:
    """A fault that happens meanwhile; what it raises is raised where it is waited for."""

    def __init__(self, harm: Callable[[], None]) -> None:
        self._pool = ThreadPoolExecutor(1)
        self._future = self._pool.submit(harm)

    @property
    def running(self) -> bool:
        if self._future.done():
            self._future.result()
            self._pool.shutdown()
        return not self._future.done()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pictures", type=int, default=60)
    parser.add_argument("--cuts", default="5,30,120", help="seconds")
    parser.add_argument("--only", default="", help="faults with one of these in their name")
    parser.add_argument("--ray-tls", action="store_true", help="TLS between Ray's processes too")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    if reason := why_not():
        log.error("no cluster: %s", reason)
        return 1
    bad = 0
    with tempfile.TemporaryDirectory(prefix="farm-hosts-") as name:
        network = Network(Path(name), ["data", "head", *WORKER_HOSTS], lossy=["w2"])
        with network.up():
            cluster = Cluster(Path(name), network, ray_tls=options.ray_tls)
            log.info("queue over TLS: %s; Ray over TLS: %s", cluster.tls, options.ray_tls)
            with cluster.running():
                log.info("four hosts, %d workers", len(cluster.workers()))
                storm = Storm(cluster, options.pictures)
                cuts = [float(seconds) for seconds in options.cuts.split(",")]
                for number, fault in enumerate(faults(cluster, cuts), 1):
                    if any(part in fault.name for part in options.only.split(",")):
                        outcome = storm.suffer(fault, number)
                        log.info("%s", outcome)
                        bad += outcome.lost + outcome.twice
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
