"""Pictures that are rendered again and compared by their tokens."""

import json
from typing import Any

import numpy as np
from fake_engine import FakeDone, FakeEngine
from harness import Cli, Gateway

from farm_client import Farm
from workers import Workers


class ChangingEngine(FakeEngine):
    """Becomes one of another numerics class."""

    changed = False

    def step(self) -> list[FakeDone]:
        if not self.changed:
            return super().step()
        return [
            one._replace(tokens=np.asarray(one.tokens + 1, one.tokens.dtype), numerics="other")
            for one in super().step()
        ]


def test_a_picture_is_rendered_again_and_compared(
    gateway: Gateway, workers: Workers, cli: Cli
) -> None:
    engine = ChangingEngine()
    workers.start(engine=engine)
    given: dict[str, Any] = {"checkpoint": "fake", "num_inference_steps": 1, "guidance_scale": 1}
    job = Farm(gateway.url).submit(["a", "b"], num_images=2, seed=5, **given)
    job.wait(120)
    told = cli("rerender", job.id, "1", "--json")
    assert told.code == 0, told.err
    lines = [json.loads(line) for line in told.out.splitlines()]
    known = {image.image: image for image in job.images() if image.render == 1}
    assert {one["index"] for one in lines} == known.keys() == {0, 1}
    for one in lines:
        assert one["same"]
        assert one["again"] == one["tokens_sha256"] == known[one["index"]].told.tokens_sha256
    engine.changed = True
    told = cli("rerender", job.id, "1", "--index", "1")
    assert told.code == 1
    assert told.out == f"1-1 differs tokens {known[1].told.tokens_sha256}\n"
    assert "numerics class fake then, other now" in told.err
    missing = cli("rerender", job.id, "7")
    assert missing.code == 2
    assert "has no picture 7" in missing.err
