"""A Ray cluster of one machine, by ``ray.cluster_utils``: ``ray_cluster.py``.

It says its address, and then answers each line that it is sent: ``add`` with a node's id,
``drain NODE SECONDS`` with whether Ray accepts it, ``actors`` with the number of those that are not
dead. It ends with its standard input.
"""

import os
import sys
import time
from typing import Any

import ray
from ray._private.state import GlobalState
from ray.cluster_utils import Cluster
from ray.core.generated import autoscaler_pb2

RESOURCES: dict[str, Any] = {
    "num_cpus": 1,
    "num_gpus": 0,
    "object_store_memory": 80 * 2**20,
    "include_dashboard": False,
}


def drain(address: str, node: str, seconds: int) -> bool:
    """What ``ray drain-node`` and the agents of cloud providers do."""
    accepted, _ = ray._raylet.GcsClient(address=address).drain_node(
        node,
        autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION"),
        "a spot machine is taken away",
        int(time.time() + seconds) * 1000,
    )
    return bool(accepted)


def actors(address: str) -> int:
    state = GlobalState()
    state._initialize_global_state(
        ray._raylet.GcsClientOptions.create(
            address, None, allow_cluster_id_nil=True, fetch_cluster_id_if_nil=False
        )
    )
    return sum(one["State"] != "DEAD" for one in state.actor_table(None).values())


def main() -> None:
    told = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what Ray prints
    cluster = Cluster(initialize_head=True, head_node_args=RESOURCES)
    print(cluster.address, file=told)
    for line in sys.stdin:
        command, *words = line.split()
        if command == "add":
            print(cluster.add_node(**RESOURCES).node_id, file=told)
        elif command == "actors":
            print(actors(cluster.address), file=told)
        else:
            print(drain(cluster.address, words[0], int(words[1])), file=told)
    cluster.shutdown()


if __name__ == "__main__":
    main()
