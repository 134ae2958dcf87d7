"""A farm on four hosts, and what happens to it: ``make cluster``.

    python tests/hosts/faults.py [--pictures 60] [--cuts 5,30,120] [--plain]

A job in three modes runs while each fault happens. A line for each says how long it took until
a lost worker's tasks were given back, until others held them, until both workers were there again
and the scheduler knew it, and until the job was done; how many pictures were lost or stored
twice, which must be none; and how many were rendered again.

FARM_CLUSTER_SERVER names a Valkey or Redis server that knows TLS. With it and with Ceph's object
gateway (``tools/ceph.sh``) everything is encrypted, and each port must ask for a secret; otherwise
Ray and the store are spoken to plainly.
"""

import argparse
import json
import logging
import math
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from cluster import HOSTS, Cluster
from data_host import ceph_is_installed, server_speaks_tls
from network import Host, Network, wait_until, why_not
from PIL import Image, ImageDraw
from watch import complete, elsewhere, given_back

JOB_SECONDS = 900.0
AWAY_SECONDS = 10.0  # that a killed host is off
SETTLE_SECONDS = 10.0  # after the workers are back; what Ray ends late, it ends by then
ELSEWHERE_SECONDS = 15.0  # at most, from a host's death until its tasks are leased by others
HEAD_SECONDS = 30.0  # at most, from the death of Ray's head until the workers are back

log = logging.getLogger("cluster")


class Fault(NamedTuple):
    """``harm`` returns when it is over."""

    name: str
    harm: Callable[[], None]
    elsewhere_within: float = math.inf  # s from its begin, for the tasks of a lost worker
    back_within: float = math.inf  # s from its begin, for the workers


class Outcome(NamedTuple):
    """What a fault cost; times in seconds from its begin."""

    fault: Fault
    given_back: float | None  # None where no session ended
    elsewhere: float | None  # None where nothing was taken over
    back: float  # as many workers as before
    known: float  # the scheduler sees them all
    done: float  # the job
    lost: int
    twice: int
    again: int  # pictures rendered more than once
    pictures: int

    @property
    def bad(self) -> bool:
        late = (self.elsewhere or 0) > self.fault.elsewhere_within
        return bool(self.lost or self.twice or late or self.back > self.fault.back_within)

    def __str__(self) -> str:
        given_back, elsewhere = (
            "-" if seconds is None else f"{seconds:.1f} s"
            for seconds in (self.given_back, self.elsewhere)
        )
        return (
            f"{self.fault.name:<28} given back {given_back:>7}  elsewhere {elsewhere:>7}  "
            f"workers {self.back:6.1f} s, known {self.known:6.1f} s  job {self.done:6.1f} s  "
            f"lost {self.lost}  "
            f"twice {self.twice}  again {self.again / self.pictures:.1%}"
            f"{'  BAD' if self.bad else ''}"
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
        watch, rendered = self._cluster.watch, self._cluster.rendered()
        before = len(watch.lives)
        job = self._submit(seed)
        wait_until(lambda: self._images(job)["done"] > 0, "the first picture", JOB_SECONDS)
        began = time.monotonic()
        fault.harm()
        healed = time.monotonic()
        wait_until(
            lambda: self._state(job) in ("done", "failed"), f"{fault.name}: job", JOB_SECONDS
        )
        done = time.monotonic() - began

        def known() -> float | None:
            return complete(watch.seen, before, healed, placed=True)

        wait_until(lambda: known() is not None, f"{fault.name}: workers", JOB_SECONDS)
        time.sleep(SETTLE_SECONDS)
        wait_until(lambda: known() is not None, f"{fault.name}: workers", JOB_SECONDS)
        return Outcome(
            fault,
            given_back(watch.seen, began),
            elsewhere(watch.seen, began),
            (complete(watch.seen, before, healed) or 0.0) + healed - began,
            (known() or 0.0) + healed - began,
            done,
            *self._stored(job),
            again=self._cluster.rendered() - rendered - self._pictures,
            pictures=self._pictures,
        )

    def _stored(self, job: str) -> tuple[int, int]:
        """How many pictures are lost, and how many are there twice."""
        folder = self._cluster.folder / f"out-{job}"
        self._cluster.client("fetch", job, "-o", str(folder))
        rows = [json.loads(line) for line in (folder / "manifest.jsonl").open()]
        stored = [(row["render"], row["image"]) for row in rows if row.get("error") is None]
        self._cluster.client("verify", job)  # fails where store, queue and manifest differ
        return self._pictures - len(set(stored)), len(stored) - len(set(stored))

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
        network.cut(w2)  # its kernel says no farewell
        w2.kill()
        time.sleep(AWAY_SECONDS)
        network.mend(w2)
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
        Fault("w2 killed, back after 10 s", kill_host, elsewhere_within=ELSEWHERE_SECONDS),
        Fault("Ray's head killed", kill(head, "gcs_server"), back_within=HEAD_SECONDS),
        Fault("the scheduler killed", kill(head, "farm scheduler")),
        Fault("the gateway killed", kill(head, "farm.gateway")),
        Fault("the queue's server killed", kill(data, "-server ")),
        Fault("the store killed", kill(data, "radosgw " if cluster.encrypted else "ministack")),
        Fault("w2 loses 5 %, 50 ms late", disturb),
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pictures", type=int, default=60)
    parser.add_argument("--cuts", default="5,30,120", help="seconds")
    parser.add_argument("--only", default="", help="faults with one of these in their name")
    parser.add_argument("--plain", action="store_true", help="no TLS to the store and in Ray")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    if reason := why_not():
        log.error("no cluster: %s", reason)
        return 1
    encrypted = server_speaks_tls() and ceph_is_installed() and not options.plain
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # the hosts go as well
    with tempfile.TemporaryDirectory(prefix="farm-hosts-") as name:
        network = Network(Path(name), HOSTS, lossy=["w2"])
        with network.up():
            cluster = Cluster(Path(name), network, encrypted=encrypted)
            log.info("queue over TLS: %s; all over TLS: %s", server_speaks_tls(), encrypted)
            with cluster.running():
                log.info("four hosts, %d workers", len(cluster.watch.lives))
                return _suffer_all(cluster, options)


def _suffer_all(cluster: Cluster, options: argparse.Namespace) -> int:
    """Returns an exit status."""
    bad = 0
    for listener in cluster.scan():
        log.info("%-5s %5d %-16s asks for %s", *listener)
        bad += listener.open and cluster.encrypted  # the other store takes any signature
    storm = Storm(cluster, options.pictures)
    cuts = [float(seconds) for seconds in options.cuts.split(",")]
    for number, fault in enumerate(faults(cluster, cuts), 1):
        if any(part in fault.name for part in options.only.split(",")):
            outcome = storm.suffer(fault, number)
            log.info("%s", outcome)
            bad += outcome.bad
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
