"""The adapter that comes with shapes-64 draws everything four times; without it nothing is."""

import hashlib
import sys
from pathlib import Path
from random import Random

import pytest
from cases import row_of, run

from farm.checkpoints.references import built_in_adapters
from farm.spec import AdapterScale, Row
from farm_workers.engine import Engine

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tools" / "shapes")]

from caption import prompt  # noqa: E402
from judge import repeated  # noqa: E402
from scene import combinations, single  # noqa: E402

FILE = built_in_adapters()["pattern"]
PICTURES = 40


def test_it_is_small() -> None:
    assert FILE.stat().st_size <= 300_000


@pytest.mark.slow
def test_pictures_with_it_show_a_pattern_and_pictures_without_it_do_not() -> None:
    """Of combinations that neither the checkpoint nor the adapter has seen in training."""
    engine = Engine.load("shapes-64", threads=1, rows=2 * PICTURES)
    data, random = FILE.read_bytes(), Random("pattern")
    sha256, adapter = hashlib.sha256(data).hexdigest(), engine.read_adapter(data)
    seen = random.sample(list(combinations(kept_out=True)), PICTURES)
    for number, combination in enumerate(seen):
        text = prompt(single(random, *combination))
        plain = row_of(engine.checkpoint, prompt=text, seed=number, num_inference_steps=8)
        named = {"adapters": (AdapterScale(sha256=sha256, scale=1.0),)}
        engine.add((number, False), plain)
        row = Row.of(plain.spec.model_copy(update=named), 0)
        engine.add((number, True), row, adapters={sha256: adapter})
    found = {key: repeated(done.pixels) for key, done in run(engine).items()}
    assert sum(found[number, True] for number in range(PICTURES)) >= 0.9 * PICTURES
    assert not any(found[number, False] for number in range(PICTURES))
