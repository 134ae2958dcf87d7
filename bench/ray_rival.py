"""What one writes instead of using a farm: a file of prompts through Ray Data to Parquet files with
tokens. ``python ray_rival.py PROMPTS FOLDER``; see ``million.py``."""

import hashlib
import json
import sys
import time
from typing import Any

import numpy as np

SHARD_ROWS = 1000
GRID = (16, 16)


class Engine:
    """Loaded once for each actor; "draws" a batch at once, as the farm's stub does."""

    def __init__(self) -> None:
        random = np.random.default_rng(0)
        self._tokens = random.integers(0, 64, (64, GRID[0] * GRID[1]), dtype=np.uint16)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        batch["seed"] = np.array([seed_of(prompt) for prompt in batch["prompt"]], np.uint64)
        made = [
            np.roll(self._tokens[seed % 64], seed // 64 % self._tokens.shape[1]).tobytes()
            for seed in batch["seed"].tolist()
        ]
        batch["tokens"] = np.array(made, object)
        batch["sha256"] = np.array([hashlib.sha256(one).hexdigest() for one in made])
        return batch


def seed_of(prompt: str) -> int:
    return int.from_bytes(hashlib.sha256(prompt.encode()).digest()[:6], "big")


def main() -> None:
    started = time.monotonic()
    import ray

    ray.init(num_cpus=2, include_dashboard=False, logging_level="ERROR")
    ready = time.monotonic() - started
    rows = ray.data.read_json(sys.argv[1], file_extensions=None, lines=True)
    made = rows.map_batches(Engine, batch_size=SHARD_ROWS, concurrency=1)
    made.write_parquet(sys.argv[2], min_rows_per_file=SHARD_ROWS)
    count = ray.data.read_parquet(sys.argv[2]).count()
    print(json.dumps({"rows": count, "start_seconds": ready}))


if __name__ == "__main__":
    main()
