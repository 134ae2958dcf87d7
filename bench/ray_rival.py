"""What one writes instead of using a farm: a file of prompts through Ray Data to Parquet files with
tokens. ``python ray_rival.py PROMPTS FOLDER``; see ``million.py``."""

import hashlib
import json
import sys
import time

import numpy as np
import pyarrow as pa

SHARD_ROWS = 1000
TEXTURES, TOKENS, CODES = 64, 256, 64


class Engine:
    """Loaded once; has the tokens of a batch at once, as the farm's stub has those of a row."""

    def __init__(self) -> None:
        drawn = [np.random.default_rng(n).integers(0, CODES, TOKENS) for n in range(TEXTURES)]
        self._twice = np.tile(np.array(drawn, np.uint16), 2)

    def __call__(self, batch: pa.Table) -> pa.Table:
        seeds = np.array([seed_of(prompt) for prompt in batch["prompt"].to_pylist()])
        places = (seeds // TEXTURES % TOKENS)[:, None] + np.arange(TOKENS)
        tokens = pa.py_buffer(self._twice[(seeds % TEXTURES)[:, None], places])
        kind = pa.binary(2 * TOKENS)
        made = pa.FixedSizeBinaryArray.from_buffers(kind, len(seeds), [None, tokens])
        return batch.append_column("seed", pa.array(seeds)).append_column("tokens", made)


def seed_of(prompt: str) -> int:
    return int.from_bytes(hashlib.sha256(prompt.encode()).digest()[:6], "big")


def main() -> None:
    started = time.monotonic()
    import ray

    ray.init(num_cpus=2, include_dashboard=False, logging_level="ERROR")
    print(json.dumps({"start_seconds": time.monotonic() - started}))
    prompts = ray.data.read_json(sys.argv[1], file_extensions=None)
    pool = ray.data.ActorPoolStrategy(size=1)
    made = prompts.map_batches(Engine, batch_format="pyarrow", batch_size=SHARD_ROWS, compute=pool)
    made.write_parquet(sys.argv[2], min_rows_per_file=SHARD_ROWS)


if __name__ == "__main__":
    main()
