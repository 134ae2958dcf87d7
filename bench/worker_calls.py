"""What a worker asks of the queue's server: its calls per second when it is idle and when full.

    python bench/worker_calls.py [--workers 4] [--seconds 15] [--json FILE]

The farm is real but for its engines, which wait (``stub_worker.py``). MONITOR tells what is called.
"""

import argparse
import collections
import json
import os
import tempfile
import time
from hashlib import sha1
from pathlib import Path
from typing import Any

from simulation import SHARD, STEPS, running_farm

from farm.queue import Queue, connect
from farm.queue.scripts import read_scripts
from farm_client import Farm

# ``tick`` less one for each pass of the scheduler; ``lease`` with those of the scheduler.
OF_WORKERS = ("heartbeat", "tick", "lease", "blmpop", "held", "complete", "mget")


def during(client: Any, seconds: float, workers: int) -> dict[str, Any]:
    """Calls per second and worker by script or command, and the server's processor."""
    scripts = {sha1(text.encode()).hexdigest(): name for name, text in read_scripts().items()}
    calls: collections.Counter[str] = collections.Counter()
    cpu, started = _cpu(client), time.monotonic()
    with client.monitor() as monitor:
        for told in monitor.listen():
            if time.monotonic() - started > seconds:
                break
            if told["client_type"] == "lua":  # a command of a script
                continue
            words = told["command"].split()
            name = scripts.get(words[1], "?") if words[0].upper() == "EVALSHA" else words[0]
            calls[name.lower()] += 1
    took = time.monotonic() - started
    passes = calls["backlog"]
    calls["tick"] = max(calls["tick"] - passes, 0)
    each = {name: calls[name] / took / workers for name in OF_WORKERS}
    return {
        **{name: round(rate, 2) for name, rate in each.items()},
        "together": round(sum(each.values()), 2),
        "scheduler_passes_per_second": round(passes / took, 2),
        "server_ms_per_second": round((_cpu(client) - cpu) * 1000 / took, 2),
    }


def _cpu(client: Any) -> float:
    cpu = client.info("cpu")
    return float(cpu["used_cpu_sys"] + cpu["used_cpu_user"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=15.0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="farm-calls-") as name:
        folder = Path(name)
        with running_farm(folder, options.workers) as (address, redis_url):
            client = connect(redis_url)
            time.sleep(3)
            idle = during(client, options.seconds, options.workers)
            print("idle", json.dumps(idle), flush=True)
            pictures = 200 * options.workers * int(options.seconds)
            requests = [
                {"prompt": f"picture {number}", "num_inference_steps": STEPS}
                for number in range(pictures)
            ]
            with Farm(address) as farm:
                job = farm.submit_many(
                    requests, sink="webdataset", shard_size=SHARD, priority="bulk"
                )
                queue = Queue(client)
                while not all(one.held for one in queue.sessions()):
                    time.sleep(0.1)
                time.sleep(3)
                full = during(client, options.seconds, options.workers)
                job.cancel()
            print("full", json.dumps(full), flush=True)
    if options.json:
        report = {
            "workers": options.workers,
            "idle": idle,
            "full": full,
            "machine": f"{os.cpu_count()} shared cores, load {os.getloadavg()[0]:.1f}",
        }
        options.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
