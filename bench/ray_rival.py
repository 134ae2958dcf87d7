"""What one writes instead of using a farm: a file of prompts through Ray Data to Parquet files with
tokens and what the farm's shards say of a picture. ``python ray_rival.py PROMPTS FOLDER [bare]``;
bare files have nothing but prompt, seed and tokens. See ``million.py``."""

import hashlib
import json
import sys
import time

import numpy as np
import pyarrow as pa

SHARD_ROWS = 1000
TEXTURES, TOKENS, CODES = 64, 256, 64
COMMON = {
    "negative_prompt": "", "checkpoint": "shapes-64", "mode": "text2img", "width": 128,
    "height": 128, "num_inference_steps": 12, "guidance_scale": 10.0, "confidence": 0.5,
    "numerics": "stub", "notes": "", "metadata": "{}",
}  # fmt: skip


class Engine:
    """Loaded once; has the tokens of a batch at once, as the farm's stub has those of a row."""

    def __init__(self, bare: bool) -> None:
        drawn = [np.random.default_rng(n).integers(0, CODES, TOKENS) for n in range(TEXTURES)]
        self._twice, self._bare = np.tile(np.array(drawn, np.uint16), 2), bare

    def __call__(self, batch: pa.Table) -> pa.Table:
        prompts = batch["prompt"].to_pylist()
        seeds = [int.from_bytes(hashlib.sha256(p.encode()).digest()[:6], "big") for p in prompts]
        turns, textures = np.divmod(np.array(seeds), TEXTURES)
        places = (turns % TOKENS)[:, None] + np.arange(TOKENS)
        tokens = [one.tobytes() for one in self._twice[textures[:, None], places]]
        made = pa.table({"prompt": prompts, "seed": seeds, "tokens": tokens})
        if not self._bare:
            pairs = zip(prompts, seeds, strict=True)
            specs = [
                json.dumps(COMMON | {"prompt": prompt, "seed": seed}) for prompt, seed in pairs
            ]
            made = made.append_column("spec", [specs])
            made = made.append_column("spec_sha256", [[sha256(one.encode()) for one in specs]])
            made = made.append_column("tokens_sha256", [[sha256(one) for one in tokens]])
            for name, value in COMMON.items():
                made = made.append_column(name, pa.repeat(value, len(made)))
        return made


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def main() -> None:
    started = time.monotonic()
    import ray

    ray.init(num_cpus=2, include_dashboard=False, logging_level="ERROR")
    print(json.dumps({"start_seconds": time.monotonic() - started}))
    prompts = ray.data.read_json(sys.argv[1], file_extensions=None)
    made = prompts.map_batches(
        Engine,
        fn_constructor_args=["bare" in sys.argv[3:]],
        batch_format="pyarrow",
        batch_size=SHARD_ROWS,
        compute=ray.data.ActorPoolStrategy(size=1),
    )
    made.write_parquet(sys.argv[2], min_rows_per_file=SHARD_ROWS)


if __name__ == "__main__":
    main()
