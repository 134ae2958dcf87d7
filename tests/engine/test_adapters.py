"""Rows with adapters are diffusers' with peft, token for token; rows without are what they were."""

import gc
import weakref
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from adapter_files import File, adapted, random_file
from cases import Case, MakeCheckpoint, draw, random_case, row_of
from diffusers.loaders import AmusedLoraLoaderMixin
from diffusers.loaders.lora_base import set_adapters_for_text_encoder
from oracle import Oracle
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn

from farm.checkpoints.inspect import inspect_checkpoint
from farm.checkpoints.references import built_in
from farm.errors import InvalidInput, RenderError
from farm.formats.adapter_file import AdapterLayer
from farm_workers.engine import Engine
from farm_workers.engine.amused import AmusedModel
from farm_workers.engine.amused.adapters import Adapter, LowRank, RowAdapters, Scaled, SlotAdapters
from farm_workers.engine.amused.parts import load_parts
from farm_workers.engine.device import Device

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


def test_a_layer_s_arithmetic_is_peft_s() -> None:
    torch.manual_seed(0)
    for rank, alpha, bias in ((1, 1, True), (7, 3, False), (16, 32, True), (64, 1, False)):
        layer = nn.Sequential(nn.Linear(48, 80, bias=bias))
        adapters, peft = [], layer
        for name, scale in (("one", 0.7), ("two", -1.3)):
            config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=["0"])
            peft = inject_adapter_in_model(config, peft, name)
            down, up = torch.randn(rank, 48), torch.randn(80, rank)
            peft[0].lora_A[name].weight.data, peft[0].lora_B[name].weight.data = down, up
            peft[0].set_scale(name, scale)
            told = AdapterLayer("transformer.0", rank, alpha, rank, "", "")
            adapters.append(Scaled(Adapter({"0": LowRank(down, up, told)}, {}), scale))
        peft[0].set_adapter(["one", "two"])
        for shape in ((2, 12, 48), (1, 77, 48), (1, 48)):
            x = torch.randn(shape)
            with torch.inference_mode():
                base = peft[0].base_layer(x)[None]
                found = RowAdapters([adapters]).add(base, x[None], "0")[0]
                assert torch.equal(found, peft(x))


def test_the_layers_that_can_be_changed_are_the_modules_own(
    make_checkpoint: MakeCheckpoint,
) -> None:
    for path in (*(make_checkpoint(**one) for one in CONFIGURATIONS), built_in()["shapes-64"]):
        engine, parts = Engine.load(path, threads=1), Oracle(path).parts
        wanted = {
            f"{part}.{name}": (module.in_features, module.out_features)
            for part in ("transformer", "text_encoder")
            for name, module in parts[part].named_modules()
            if isinstance(module, nn.Linear) and name != "text_projection"
        }
        assert engine._model.adapter_targets == wanted  # type: ignore[attr-defined]


def test_adapters_scales_and_their_order_are_told_apart_and_nothing_is_mixed_up(
    engine: Engine,
) -> None:
    """One prompt and seed throughout, so that every cache could be wrong."""
    random = Random(4)
    one, two = (random_file(random, engine, everything=True) for _ in range(2))
    plain = Case(row_of(engine.checkpoint, num_inference_steps=3))
    kinds: list[list[tuple[File, float]]] = [
        [],
        [(one, 1.0)],
        [(two, 1.0)],
        [(one, 0.5)],
        [(one, 1.0), (two, 1.0)],
    ]
    cases = [adapted(engine, plain, *kind) for kind in kinds]
    first = draw(engine, *cases)
    assert len({done.tokens.tobytes() for done in first}) == len(kinds)  # type: ignore[union-attr]
    for place in reversed(range(len(kinds))):
        again = draw(engine, cases[place])[0]
        np.testing.assert_array_equal(again.tokens, first[place].tokens)


def test_an_adapter_of_the_text_encoder_alone_changes_the_picture(engine: Engine) -> None:
    file = random_file(Random(0), engine, everything=True)
    text = {key: one for key, one in file.tensors.items() if key.startswith("text_encoder.")}
    file = File(safetensors.torch.save(text), None, text)
    plain = Case(row_of(engine.checkpoint, num_inference_steps=3))
    before, after, again = draw(engine, plain, adapted(engine, plain, (file, 1.0)), plain)
    assert not np.array_equal(before.tokens, after.tokens)
    np.testing.assert_array_equal(before.tokens, again.tokens)


def test_a_row_whose_adapter_overflows_fails_alone(engine: Engine) -> None:
    random = Random(8)
    good, bad = random_file(random, engine), random_file(random, engine, everything=True)
    huge = {key: one.float() * 1e30 for key, one in bad.tensors.items()}
    bad = File(safetensors.torch.save(huge), None, huge)
    plain = Case(row_of(engine.checkpoint, num_inference_steps=3))
    beside = [plain, adapted(engine, plain, (good, 1.0))]
    expected = draw(engine, *beside)
    found = draw(engine, beside[0], adapted(engine, plain, (bad, 1.0)), beside[1])
    assert isinstance(found[1].error, RenderError)
    for one, other in zip(expected, (found[0], found[2]), strict=True):
        np.testing.assert_array_equal(one.tokens, other.tokens)
        np.testing.assert_array_equal(one.pixels, other.pixels)


def test_fifty_adapters_in_turn_leave_as_many_behind_as_there_are_bytes_for(
    checkpoint: Path, loaded: Engine
) -> None:
    inspected, cpu = inspect_checkpoint(checkpoint), Device("cpu")
    parts = load_parts(inspected, cpu.torch, torch.float32)
    targets = loaded._model.adapter_targets.values()  # type: ignore[attr-defined]
    each = sum(4 * 4 * (inputs + outputs) for inputs, outputs in targets)  # of rank 4, in float32
    engine = Engine(
        AmusedModel(inspected.info, parts, cpu, torch.float32, adapter_bytes=6 * each - 1)
    )
    moved: list[weakref.ref[Adapter]] = []
    model, random = engine._model, Random(50)
    for number in range(50):
        file = random_file(random, engine, rank=4, everything=True)
        case = Case(row_of(engine.checkpoint, num_inference_steps=2, seed=number))
        assert draw(engine, adapted(engine, case, (file, 1.0)))[0].error is None
        moved.append(weakref.ref(model._adapters.find(file.sha256)))  # type: ignore[attr-defined]
    gc.collect()
    assert [number for number, one in enumerate(moved) if one() is not None] == [*range(45, 50)]


def test_an_adapter_goes_to_a_gpu_in_one_copy(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here the GPU's memory is the host's, which needs no pinning."""
    empty, gpu = torch.empty, Device("cpu")
    gpu.is_cuda = True
    monkeypatch.setattr(torch, "empty", lambda size, dtype, pin_memory: empty(size, dtype=dtype))
    given = engine.read_adapter(random_file(Random(2), engine, rank=7, everything=True).data)
    moved = given.to(gpu, torch.bfloat16)
    places = set()
    for part in ("transformer", "text_encoder"):
        layers, expected = getattr(moved, part), getattr(given, part)
        assert layers.keys() == expected.keys()
        for name, layer in layers.items():
            assert layer.told == expected[name].told
            for one, other in zip(layer[:2], expected[name][:2], strict=True):
                assert torch.equal(one, other.to(torch.bfloat16))
                assert one.storage_offset() % 128 == 0
                places.add(one.untyped_storage().data_ptr())
    assert len(places) == 1


def test_adapters_that_the_spec_does_not_name_and_those_it_misses_are_refused(
    engine: Engine,
) -> None:
    file = random_file(Random(1), engine)
    plain = Case(row_of(engine.checkpoint))
    named = adapted(engine, plain, (file, 1.0))
    with pytest.raises(InvalidInput, match="named but not given"):
        engine.add(0, named.row)
    with pytest.raises(InvalidInput, match="given but not named"):
        engine.add(0, plain.row, **named.inputs)
    layer = "transformer.transformer_layers.7.attn1.to_q"
    tensors = {f"{layer}.lora_{part}.weight": torch.ones(2, 2) for part in "AB"}
    with pytest.raises(InvalidInput, match="is not a linear layer of this checkpoint"):
        engine.read_adapter(safetensors.torch.save(tensors))
    assert engine.idle


@torch.inference_mode()
def test_padded_products_are_the_rows_own_and_know_no_neighbours(engine: Engine) -> None:
    """The way of a GPU, on a CPU: batched products over all half-slots, in steps of rank 16."""
    model: Any = engine._model
    random, noise, cpu = Random(6), torch.Generator().manual_seed(6), torch.device("cpu")
    files = [random_file(random, engine, rank=rank) for rank in (4, 16, 40)]
    adapters = [model.read_adapter(one.data).to(Device(cpu), torch.float32) for one in files]
    rows: list[list[Scaled]] = [
        [],
        [Scaled(adapters[0], 0.7)],
        [Scaled(adapters[1], 1.0), Scaled(adapters[0], -0.5)],
        [Scaled(adapters[2], 1.3)],
    ]
    tokens = torch.randint(0, 900, (len(rows), 16), generator=noise)
    packed = torch.randn(len(rows), 1, model.conditioning_size, generator=noise)

    def features(slots: Any) -> Tensor:
        return model.forward(tokens, model.bind(packed), (4, 4), slots)

    def slots_of(rows: list[list[Scaled]]) -> SlotAdapters:
        slots = SlotAdapters(len(rows), cpu, torch.float32, model.transformer.step_layers())
        for slot, row in enumerate(rows):
            slots.reserve(row)
            slots[slot] = row
        return slots

    slots = slots_of(rows)
    assert slots.shape is not None
    assert slots.shape[1] == 3  # rank 40 in steps of 16
    found, base = features(slots), features([()] * len(rows))
    torch.testing.assert_close(found, features(rows), rtol=1e-4, atol=1e-4)
    assert torch.equal(found[0], base[0])
    assert not torch.allclose(found[1:], base[1:], atol=1e-2)
    for slot in (1, 2):
        alone = slots_of([row if place == slot else [] for place, row in enumerate(rows)])
        assert torch.equal(features(alone)[slot], found[slot])
    slots[3] = rows[1]  # a smaller one in the place of a larger one
    moved = features(slots)
    torch.testing.assert_close(moved[3], features([[], [], [], rows[1]])[3], rtol=1e-4, atol=1e-4)
    for slot in range(len(rows)):
        slots[slot] = ()
    assert slots.shape is None
    assert torch.equal(features(slots), base)
