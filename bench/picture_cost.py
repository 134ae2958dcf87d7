"""Processor time that a picture takes after it was drawn, step by step, in one process.

    python bench/picture_cost.py [--pictures 100] [--out FILE]

Encode: pixels to a PNG without anything beside. Mark: the farm's facts, tokens and mark of origin.
Hash: sha256 of the file and of its tokens, and reading back what was written. Shard: the file's
share in packing a shard. Processor time and not the clock's, so that other load matters less.
"""

import argparse
import json
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fpng
from stub_farm import CHECKPOINT

from farm.checkpoints.inspect import inspect_checkpoint
from farm.formats.encoding import encode
from farm.formats.picture_record import PictureRecord
from farm.job import Format
from farm.sinks.layout import Layout
from farm.sinks.parquet import Parquet, Tokens
from farm.sinks.webdataset import Webdataset
from farm.spec import RenderRequest, Row
from farm_workers.testing.stub_engine import StubEngine

LAYOUTS: dict[str, Layout] = {
    "webdataset": Webdataset(), "parquet": Parquet(), "tokens": Tokens()
}  # fmt: skip
SIZES = (256, 512)


def cost(size: int, count: int) -> dict[str, float]:
    """Milliseconds of processor time a picture, by step."""
    info = inspect_checkpoint(CHECKPOINT).info
    engine = StubEngine(info, count)
    request = RenderRequest(prompt="a picture", height=size, width=size)
    specs = [request.resolve(info, seed=number) for number in range(count)]
    for number, spec in enumerate(specs):
        engine.add(number, Row.of(spec, 0))
    drawn = engine.step()
    records = [
        PictureRecord("j", 0, number, 0, spec, "stub", Format.PNG, confidence=0.5)
        for number, spec in enumerate(specs)
    ]
    figures: dict[str, float] = {}

    def timed(name: str, run: Callable[[], Any]) -> Any:
        started = time.process_time()
        result = run()
        figures[name] = round((time.process_time() - started) / count * 1000, 3)
        return result

    timed("encode", lambda: [fpng.from_ndarray(one.pixels) for one in drawn])
    pairs = list(zip(records, drawn, strict=True))
    files = timed(
        "whole file",
        lambda: [encode(one.pixels, record.facts(one.tokens), Format.PNG) for record, one in pairs],
    )
    figures["mark"] = round(figures.pop("whole file") - figures["encode"], 3)
    rows = timed(
        "hash",
        lambda: [
            record.stored_row(record.file_name, data)
            for record, data in zip(records, files, strict=True)
        ],
    )
    for name, layout in LAYOUTS.items():
        contents = [row.tokens for row in rows] if layout.tokens_alone else files
        layout.pack(rows, contents)  # imports what it needs
        timed(f"shard, {name}", lambda layout=layout, held=contents: layout.pack(rows, held))
    figures["kilobytes"] = round(sum(map(len, files)) / count / 1000, 1)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pictures", type=int, default=100)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    cost(64, 2)  # imports and caches
    told = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "pictures": options.pictures,
        "ms_per_picture": {str(size): cost(size, options.pictures) for size in SIZES},
    }
    print(json.dumps(told, indent=1))
    if options.out:
        options.out.write_text(json.dumps(told, indent=1) + "\n")


if __name__ == "__main__":
    main()
