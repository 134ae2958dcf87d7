"""Ray's fake multi-node provider: its autoscaler starts and ends nodes on this machine."""

from typing import Any

import ray._private.services
from ray.autoscaler._private.fake_multi_node.node_provider import FakeMultiNodeProvider


class LoopbackNodes(FakeMultiNodeProvider):
    """Its nodes are reached by loopback only."""

    def __init__(self, provider_config: dict[str, Any], cluster_name: str) -> None:
        super().__init__(provider_config, cluster_name)
        ray._private.services.get_node_ip_address = lambda *_: "127.0.0.1"
