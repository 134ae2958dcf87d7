"""`farm bench engine`: this engine beside the diffusers pipelines, in one interleaved run."""

import argparse
import hashlib
import itertools
import json
import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from farm.checkpoints.inspect import inspect_checkpoint
from farm.checkpoints.references import built_in_adapters
from farm.spec import AdapterScale, CheckpointInfo, Mode, Row
from farm_workers.bench.floor import decode_flops, step_flops
from farm_workers.bench.full_size import CONFIGURATIONS, random_parts
from farm_workers.bench.pipelines import make_pipeline, upstream_modules
from farm_workers.bench.workloads import Item, draw_with_engine, mixed, uniform
from farm_workers.engine import Engine
from farm_workers.engine.amused import DTYPES, AmusedModel
from farm_workers.engine.amused.parts import Parts, load_parts
from farm_workers.engine.device import Device

Workload = Callable[[int], list[Item]]  # its pictures in each round

BATCHES = (1, 2, 4, 8, 16, 32, 64)


@dataclass
class System:
    """Something that draws a workload and returns when every picture is there as bytes."""

    name: str
    draw: Callable[[list[Item]], object]
    seconds: dict[str, list[float]] = field(default_factory=dict)  # per picture, by workload


class Upstream:
    """The pipelines on the same parts; items of one kind may share a call."""

    def __init__(self, info: CheckpointInfo, parts: dict[str, Any]) -> None:
        self._pipelines = {
            mode: make_pipeline(mode, mask_token_id=info.mask_token_id, **parts) for mode in Mode
        }
        self._device = next(parts["transformer"].parameters()).device

    def draw(self, items: list[Item], batch: int) -> None:
        for start in range(0, len(items), batch):
            self._call(items[start : start + batch])

    def _call(self, items: list[Item]) -> None:
        spec = items[0].spec
        given: dict[str, Any] = {
            "prompt": [item.spec.prompt for item in items],
            "num_inference_steps": spec.num_inference_steps,
            "guidance_scale": spec.guidance_scale,
            "temperature": spec.temperature,
            "generator": torch.Generator(self._device).manual_seed(spec.seed),
        }
        if items[0].image is None:
            given |= {"height": spec.height, "width": spec.width}
        else:
            given |= {"image": Image.fromarray(items[0].image), "strength": spec.strength}
        if items[0].mask is not None:
            given["mask_image"] = Image.fromarray(items[0].mask)
        for picture in self._pipelines[spec.mode](**given).images:
            np.asarray(picture)


def measure(
    systems: Sequence[System],
    workloads: dict[str, Workload],
    rounds: int,
    sync: Callable[[], None],
) -> None:
    """Every system once per round, so that a busy neighbour slows all of them alike."""
    for number in range(rounds + 1):
        for name, make in workloads.items():
            items = make(number)
            for system in systems:
                spent = _seconds(partial(system.draw, items), sync) / len(items)
                if number:  # the first round warms up
                    system.seconds.setdefault(name, []).append(spent)


def best_batch(upstream: Upstream, items: list[Item], sync: Callable[[], None]) -> int:
    spent: dict[int, float] = {}
    for batch in (size for size in BATCHES if size <= len(items)):
        draw = partial(upstream.draw, items[:batch], batch)
        try:
            spent[batch] = min(_seconds(draw, sync) for _ in range(3)) / batch
        except torch.cuda.OutOfMemoryError:
            break
    return min(spent, key=lambda batch: spent[batch])


def matrix_rate(device: torch.device, dtype: torch.dtype, sync: Callable[[], None]) -> float:
    """FLOP/s of a large product, the best of several: the measured ceiling."""
    side = 8192 if device.type == "cuda" else 1024
    left, right = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    return 2 * side**3 / min(_seconds(lambda: left @ right, sync) for _ in range(10))


def picture_flops(info: CheckpointInfo, parts: Parts, steps: int = 12) -> float:
    """FLOPs of one guided picture of the checkpoint's own size."""
    grid = info.grid(info.native_height, info.native_width)
    step = step_flops(parts.transformer.config, info.text_tokens, grid)
    return 2 * steps * step + decode_flops(parts.vqvae.config, grid)


class Source(NamedTuple):
    """Where each side's parts come from."""

    checkpoint: str
    random: str | None  # a full-size configuration instead, with random weights
    device: str
    dtype: torch.dtype

    def load(self) -> tuple[CheckpointInfo, Parts]:
        device = torch.device(self.device)
        if self.random:
            return random_parts(self.random, device, self.dtype)
        checkpoint = inspect_checkpoint(self.checkpoint)
        return checkpoint.info, load_parts(checkpoint, device, self.dtype)

    def engine(self, rows: int | None, tile: int) -> Engine:
        info, parts = self.load()
        target = Device(self.device)
        with torch.inference_mode(), target.scope():
            model = AmusedModel(info, parts, target, self.dtype)
        return Engine(model, rows=rows, tile=tile)


class EnginePerCore:
    """Engines of one thread, one for each core, in processes of their own; they share the work."""

    _own: Engine  # in such a process

    def __init__(self, source: Source, rows: int | None, tile: int) -> None:
        context = multiprocessing.get_context("spawn")
        self.cores = os.cpu_count() or 1
        given = (source, rows, tile, context.Barrier(self.cores))
        self._pool = ProcessPoolExecutor(self.cores, context, self._start, given)

    @classmethod
    def _start(cls, source: Source, rows: int | None, tile: int, loaded: Any) -> None:
        torch.set_num_threads(1)
        cls._own = source.engine(rows, tile)
        loaded.wait()

    @classmethod
    def _draw(cls, items: list[Item]) -> None:
        draw_with_engine(cls._own, items)

    def draw(self, items: list[Item]) -> None:
        list(self._pool.map(self._draw, [items[core :: self.cores] for core in range(self.cores)]))


def adapted(engine: Engine, tile: int, rounds: int, sync: Callable[[], None]) -> dict[str, Any]:
    """A full tile's step where every row has the checkpoint's own adapter, over one without.

    Every round takes both, one after the other; medians of them.
    """
    data = built_in_adapters()["pattern"].read_bytes()
    sha256, adapter = hashlib.sha256(data).hexdigest(), engine.read_adapter(data)
    items = uniform(engine.checkpoint, tile, steps=100)
    seconds: dict[bool, list[float]] = {False: [], True: []}
    for _, given in itertools.product(range(rounds + 1), seconds):
        named = {"adapters": (AdapterScale(sha256=sha256, scale=1.0),) if given else ()}
        for key, item in enumerate(items):
            row = Row.of(item.spec.model_copy(update=named), 0)
            engine.add(key, row, adapters={sha256: adapter} if given else {})
        for _ in items:  # admissions go first
            engine.step()
        taken = [_seconds(engine.step, sync) for _ in range(9)]
        seconds[given].append(statistics.median(taken))
        engine.cancel(range(tile))
    pairs = list(zip(seconds[False], seconds[True], strict=True))[1:]
    return {
        "step_seconds": statistics.median(plain for plain, _ in pairs),
        "step_seconds_with_adapters": statistics.median(changed for _, changed in pairs),
        "ratio": statistics.median(changed / plain for plain, changed in pairs),
    }


def urgent(engine: Engine, tile: int, rounds: int, sync: Callable[[], None]) -> dict[str, float]:
    """An urgent picture's seconds beside a full bulk tile, over its seconds in an idle engine.

    Every round takes both and the seconds of a bulk step, one after another; medians of them.
    """
    info = engine.checkpoint
    items = iter(uniform(info, 2 * (rounds + 1), rounds + 2))
    bulk = uniform(info, 2 * tile, steps=100)
    idle, step, busy = [], [], []
    for _ in range(rounds + 1):
        idle.append(_urgent_seconds(engine, next(items), sync))
        for key, item in enumerate(bulk):
            engine.add(key, Row.of(item.spec, 0))
        for _ in range(tile):  # admissions go first; the rest of the rows waits
            engine.step()
        step.append(statistics.median(_seconds(engine.step, sync) for _ in range(3)))
        busy.append(_urgent_seconds(engine, next(items), sync))
        engine.cancel(range(len(bulk)))
    warm = list(zip(idle, step, busy, strict=True))[1:]
    return {
        "idle_seconds": statistics.median(idle[1:]),
        "bulk_step_seconds": statistics.median(step[1:]),
        "busy_seconds": statistics.median(busy[1:]),
        "ratio": statistics.median(full / alone for alone, _, full in warm),
        "ratio_less_a_bulk_step": statistics.median(
            (full - piece) / alone for alone, piece, full in warm
        ),
    }


def _urgent_seconds(engine: Engine, item: Item, sync: Callable[[], None]) -> float:
    def draw() -> None:
        engine.add("urgent", Row.of(item.spec, 0), urgent=True)
        while not any(done.key == "urgent" for done in engine.step()):
            pass

    return _seconds(draw, sync)


def _seconds(work: Callable[[], object], sync: Callable[[], None]) -> float:
    sync()
    started = time.perf_counter()
    work()
    sync()
    return time.perf_counter() - started


def report(systems: Sequence[System], workloads: Iterable[str]) -> dict[str, Any]:
    table: dict[str, Any] = {}
    for name in workloads:
        ours = systems[0].seconds[name]
        table[name] = {}
        for system in systems:
            ratios = [theirs / own for theirs, own in zip(system.seconds[name], ours, strict=True)]
            table[name][system.name] = {
                "images_per_second": 1 / statistics.median(system.seconds[name]),
                "seconds_per_image": statistics.median(system.seconds[name]),
                "engine_is_faster_by": statistics.median(ratios),
            }
    return table


def parser() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser("farm bench engine", description=__doc__)
    options.add_argument("--checkpoint", default="shapes-64")
    options.add_argument("--random-weights", choices=CONFIGURATIONS, help="a full-size model")
    options.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options.add_argument("--dtype", choices=DTYPES, default=None)
    options.add_argument("--tile", type=int, default=8)
    options.add_argument("--rows", type=int, default=None)
    options.add_argument("--threads", type=int, default=None)
    options.add_argument(
        "--images",
        type=int,
        default=None,
        help="of each workload, and diffusers' largest batch; 24 on a CPU, 64 on a GPU",
    )
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--compile", action="store_true", help="diffusers with torch.compile too")
    options.add_argument(
        "--per-core",
        action="store_true",
        help="an engine of one thread on each core; diffusers with as many threads",
    )
    options.add_argument(
        "--adapter", action="store_true", help="what the adapter of shapes-64 costs in a step"
    )
    options.add_argument("--json", action="store_true", help="JSON on stdout, the table on stderr")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it; returns the exit status."""
    options = parser().parse_args(arguments)
    device = torch.device(options.device)
    dtype = options.dtype or ("bfloat16" if device.type == "cuda" else "float32")
    sync = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    if options.threads or options.per_core:
        torch.set_num_threads(options.threads or os.cpu_count() or 1)
    source = Source(options.checkpoint, options.random_weights, options.device, DTYPES[dtype])
    engine = source.engine(options.rows, options.tile)
    # diffusers gets parts of its own: each side may change what it has.
    info, parts = source.load()
    others = upstream_modules(parts)
    upstream = Upstream(info, others)
    count = options.images or (max(BATCHES) if device.type == "cuda" else 24)
    workloads: dict[str, Workload] = {
        "uniform": partial(uniform, info, count),
        "mixed": partial(mixed, info, count),
        "single": lambda take: uniform(info, 1, -1 - take),  # prompts that "uniform" has not had
    }
    batch = best_batch(upstream, uniform(info, count), sync)

    def in_batches(items: list[Item]) -> None:
        # Only pictures that agree in every parameter can share a call of the pipelines.
        alike = all(item.spec.mode is Mode.TEXT2IMG for item in items)
        upstream.draw(items, batch if alike else 1)

    systems = [
        System("this engine", lambda items: draw_with_engine(engine, items)),
        System("diffusers, one by one", lambda items: upstream.draw(items, 1)),
        System(f"diffusers, batch {batch}", in_batches),
    ]
    if options.compile:
        fast = {**others, "transformer": torch.compile(others["transformer"])}
        compiled = Upstream(info, fast)
        systems.append(System("diffusers, torch.compile", lambda items: compiled.draw(items, 1)))
    if options.per_core:
        engines = EnginePerCore(source, options.rows, options.tile)
        systems.insert(0, System(f"{engines.cores} engines of one thread", engines.draw))
    measure(systems, workloads, options.rounds, sync)
    flops = picture_flops(info, parts)
    floor = flops / matrix_rate(device, DTYPES[dtype], sync)
    reached = statistics.median(systems[0].seconds["uniform"])
    result = {
        "numerics": engine.numerics,
        "images": count,
        "rounds": options.rounds,
        "best_batch": batch,
        "workloads": report(systems, workloads),
        "urgent": urgent(engine, options.tile, options.rounds, sync),
        "adapter": adapted(engine, options.tile, options.rounds, sync) if options.adapter else None,
        "floor": {
            "gflop_per_image": flops / 1e9,
            "seconds_per_image": floor,
            "share_reached": floor / reached,
        },
    }
    _print(result, sys.stderr if options.json else sys.stdout)
    if options.json:
        print(json.dumps(result))
    return 0


def _print(result: dict[str, Any], out: Any) -> None:
    print(result["numerics"], file=out)
    for name, systems in result["workloads"].items():
        for system, row in systems.items():
            print(
                f"{name:8} {system:26} {row['images_per_second']:9.2f} images/s "
                f"{row['seconds_per_image'] * 1e3:9.1f} ms {row['engine_is_faster_by']:6.2f} x",
                file=out,
            )
    rush, floor = result["urgent"], result["floor"]
    print(
        f"urgent   {rush['busy_seconds'] * 1e3:.1f} ms beside a full bulk tile: "
        f"{rush['ratio']:.2f} x the {rush['idle_seconds'] * 1e3:.1f} ms of an idle engine; "
        f"{rush['ratio_less_a_bulk_step']:.2f} x less a bulk step of "
        f"{rush['bulk_step_seconds'] * 1e3:.1f} ms",
        file=out,
    )
    if adapter := result["adapter"]:
        print(
            f"adapter  {adapter['step_seconds_with_adapters'] * 1e3:.1f} ms a step where every row "
            f"has one: {adapter['ratio']:.2f} x the {adapter['step_seconds'] * 1e3:.1f} ms without",
            file=out,
        )
    print(
        f"floor    {floor['gflop_per_image']:.2f} GFLOP per image at the measured matrix rate: "
        f"{floor['seconds_per_image'] * 1e3:.1f} ms; {floor['share_reached']:.0%} reached",
        file=out,
    )


if __name__ == "__main__":
    sys.exit(main())
