"""Rows with adapters are diffusers' with peft, token for token; rows without are what they were."""

from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from adapter_files import File, adapted, random_file
from cases import MakeCheckpoint, draw, random_case
from diffusers.loaders import AmusedLoraLoaderMixin
from diffusers.loaders.lora_base import set_adapters_for_text_encoder
from oracle import Oracle

from farm_workers.engine import Engine

CONFIGURATIONS: list[dict[str, Any]] = [
    {"num_hidden_layers": 1},
    {"num_hidden_layers": 2, "hidden_size": 64, "use_bias": True, "codebook_size": 300},
    {"num_hidden_layers": 1, "hidden_size": 96, "block_out_channels": 64, "downsample": True},
]
CASES_OF_EACH = 21
SCALES = (1.0, 0.8, -0.5, 1.7, 0.05)


class AdaptedOracle(Oracle):
    """The pipelines with adapters loaded by diffusers' own loader."""

    def __init__(self, checkpoint: Path, files: list[File]) -> None:
        super().__init__(checkpoint)
        self._parts_of: dict[str, set[str]] = {}
        for file in files:
            name = f"a{file.sha256[:12]}"
            self._parts_of[file.sha256] = {key.partition(".")[0] for key in file.tensors}
            stems = {key.rpartition(".lora_")[0] for key in file.tensors}
            alphas = file.alpha and {f"{stem}.alpha": file.alpha for stem in stems}
            self.parts["transformer"].load_lora_adapter(
                dict(file.tensors), network_alphas=alphas, adapter_name=name
            )
            if "text_encoder" in self._parts_of[file.sha256]:
                AmusedLoraLoaderMixin.load_lora_into_text_encoder(
                    dict(file.tensors),
                    _text_alphas(alphas),
                    self.parts["text_encoder"],
                    adapter_name=name,
                )

    def use(self, *named: tuple[File, float]) -> None:
        for part, activate in (
            ("transformer", self.parts["transformer"].set_adapters),
            ("text_encoder", self._activate_text),
        ):
            has = [one for one in named if part in self._parts_of[one[0].sha256]]
            loaded = any(part in parts for parts in self._parts_of.values())
            if not loaded:
                continue
            module = self.parts[part]
            module.enable_lora() if part == "transformer" else module.enable_adapters()
            if has:
                activate([f"a{file.sha256[:12]}" for file, _ in has], [scale for _, scale in has])
            else:
                module.disable_lora() if part == "transformer" else module.disable_adapters()

    def _activate_text(self, names: list[str], scales: list[float]) -> None:
        set_adapters_for_text_encoder(names, self.parts["text_encoder"], scales)


def _text_alphas(alphas: dict[str, int] | None) -> dict[str, int] | None:
    """The loader of text encoders knows one alpha for all of them."""
    if not alphas:
        return None
    return {key: alpha for key, alpha in alphas.items() if key.startswith("text_encoder.")}


@pytest.mark.parametrize("number", range(len(CONFIGURATIONS)))
def test_rows_with_adapters_are_what_diffusers_and_peft_draw(
    make_checkpoint: MakeCheckpoint, number: int
) -> None:
    """All in one tile each, with one to three adapters and with none."""
    path = make_checkpoint(**CONFIGURATIONS[number])
    engine, random = Engine.load(path, threads=1), Random(number)
    files = [random_file(random, engine) for _ in range(4)]
    files.append(random_file(random, engine, everything=True))
    oracle = AdaptedOracle(path, files)
    modes = ["text2img", "img2img", "inpaint"]
    cases, named = [], []
    for place in range(CASES_OF_EACH + 3):
        case = random_case(
            random, engine.checkpoint, rng="torch", mode=modes[place % 3], most_steps=6
        )
        count = random.randint(1, 3) if place < CASES_OF_EACH else 0
        named.append([(file, random.choice(SCALES)) for file in random.sample(files, count)])
        cases.append(adapted(engine, case, *named[-1]))
    order = random.sample(range(len(cases)), len(cases))
    results = draw(engine, *(cases[place] for place in order))
    for place, done in zip(order, results, strict=True):
        case = cases[place]
        assert done.error is None
        oracle.use(*named[place])
        given = {key: value for key, value in case.inputs.items() if key != "adapters"}
        np.testing.assert_array_equal(
            done.tokens, oracle.tokens(case.row, **given), err_msg=case.row.spec.canonical()
        )
        if place < 2:
            np.testing.assert_array_equal(done.pixels, oracle.pixels(case.row, **given))
