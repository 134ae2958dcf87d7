"""What a checkpoint may be; everything else is refused with one line."""

import contextlib
import json
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from cases import draw, random_case
from safetensors.torch import load_file, save_file

from farm.checkpoints.inspect import inspect_checkpoint
from farm.checkpoints.layout import CONFIGS
from farm.errors import InvalidCheckpoint
from farm_workers.engine import Engine
from farm_workers.testing.tiny import make_tiny
from farm_workers.worker.load_engine import check_loads


@pytest.fixture
def copy(checkpoint: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(checkpoint, tmp_path / "copy"))


def _edit(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def _endless(path: Path) -> None:
    """As many bytes as before, and a tensor without an end by their header."""
    file = path / "transformer/diffusion_pytorch_model.safetensors"
    data = file.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    header["encoder_proj.weight"]["shape"] = [float("inf")]
    text = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])


def _cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


def _pickle(path: Path) -> None:
    folder = path / "transformer"
    (folder / "diffusion_pytorch_model.safetensors").rename(folder / "diffusion_pytorch_model.bin")


def _header(path: Path) -> None:
    file = path / "transformer/diffusion_pytorch_model.safetensors"
    file.write_bytes(struct.pack("<Q", 2**40) + file.read_bytes()[8:])


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1234\n"


def _dtype(path: Path, name: str) -> None:
    """As many bytes as before, of another type by their header."""
    file = path / "transformer/diffusion_pytorch_model.safetensors"
    data = file.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = data[8 : 8 + length].replace(b'"F32"', f'"{name}"'.encode())
    file.write_bytes(struct.pack("<Q", len(header)) + header + data[8 + length :])


def _variant(path: Path) -> None:
    file = path / "transformer/diffusion_pytorch_model.safetensors"
    file.rename(file.with_name("diffusion_pytorch_model.fp16.safetensors"))


BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "no index": (lambda p: (p / "model_index.json").unlink(), "model_index.json is missing"),
    "no part": (lambda p: shutil.rmtree(p / "vqvae"), "vqvae/config.json is missing"),
    "no tokenizer": (lambda p: (p / "tokenizer/vocab.json").unlink(), "vocab.json is missing"),
    "no merges": (lambda p: (p / "tokenizer/merges.txt").unlink(), "merges.txt is missing"),
    "no weights": (
        lambda p: (p / "text_encoder/model.safetensors").unlink(),
        "model.safetensors is missing",
    ),
    "pickle": (_pickle, "pickled weights"),
    "cut weights": (
        lambda p: _cut(p / "vqvae/diffusion_pytorch_model.safetensors"),
        "damaged or cut short",
    ),
    "wild header": (_header, "damaged or cut short"),
    "endless tensor": (_endless, "damaged or cut short"),
    "text for a number": (
        lambda p: _edit(p / "vqvae/config.json", vq_embed_dim="x"),
        "vq_embed_dim is 'x'",
    ),
    "empty weights": (
        lambda p: (p / "text_encoder/model.safetensors").write_bytes(b""),
        "damaged or cut short",
    ),
    "broken json": (lambda p: _cut(p / "transformer/config.json"), "not valid JSON"),
    "binary json": (
        lambda p: (p / "model_index.json").write_bytes(b"\xff\xfe\x00"),
        "not valid JSON",
    ),
    "custom pipeline": (
        lambda p: _edit(p / "model_index.json", _class_name="MyPipeline"),
        "not an aMUSEd pipeline",
    ),
    "custom code": (
        lambda p: _edit(p / "model_index.json", transformer=["my_code", "UVit2DModel"]),
        "does not know",
    ),
    "other class": (
        lambda p: _edit(p / "model_index.json", scheduler=["diffusers", "DDIMScheduler"]),
        "of the class 'DDIMScheduler'",
    ),
    "auto map": (
        lambda p: _edit(p / "text_encoder/config.json", auto_map={"AutoModel": "x.Y"}),
        "custom code",
    ),
    "lfs weights": (
        lambda p: (p / "vqvae/diffusion_pytorch_model.safetensors").write_text(POINTER),
        "is a Git LFS pointer",
    ),
    "lfs vocabulary": (
        lambda p: (p / "tokenizer/vocab.json").write_text(POINTER),
        "git lfs pull",
    ),
    "fp8": (lambda p: _dtype(p, "F8_E4M3"), "holds F8_E4M3 weights"),
    "variant only": (_variant, "only the variant diffusion_pytorch_model.fp16.safetensors"),
    "broken vocabulary": (lambda p: _cut(p / "tokenizer/vocab.json"), "vocab.json is not valid"),
    "mixed sizes": (lambda p: _edit(p / "transformer/config.json", vocab_size=99), "has the shape"),
    "mixed parts": (
        lambda p: _edit(p / "scheduler/scheduler_config.json", mask_token_id=5),
        "in the codebook",
    ),
    "bad guidance": (
        lambda p: _edit(p / "farm.json", default_guidance_scale="high"),
        "default_guidance_scale",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_checkpoint_is_refused_with_one_line(copy: Path, name: str) -> None:
    spoil, message = BAD[name]
    spoil(copy)
    with pytest.raises(InvalidCheckpoint) as refused:
        inspect_checkpoint(copy)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "reference", ["no/such@thing", "nowhere", "owner/name", "/dev/null", "a b", "owner/name@main"]
)
def test_a_reference_to_nothing_is_refused(reference: str) -> None:
    with pytest.raises(InvalidCheckpoint):
        inspect_checkpoint(reference)


def test_offline_a_hub_id_gives_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(InvalidCheckpoint) as refused:
        inspect_checkpoint("owner/name@" + "0" * 40)
    assert "cannot be fetched" in str(refused.value)
    assert "\n" not in str(refused.value)


def test_the_revision_follows_from_the_bytes(copy: Path, checkpoint: Path) -> None:
    first = inspect_checkpoint(checkpoint).info.revision
    assert inspect_checkpoint(copy).info.revision == first
    (copy / "README.md").write_text("a note changes no picture")
    assert inspect_checkpoint(copy).info.revision == first
    weights = copy / "transformer/diffusion_pytorch_model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert inspect_checkpoint(copy).info.revision != first


def test_sharded_weights_load(copy: Path) -> None:
    folder, stem = copy / "transformer", "diffusion_pytorch_model"
    whole = folder / f"{stem}.safetensors"
    tensors = load_file(whole)
    expected = Engine.load(copy, threads=1)
    weight_map = {}
    for number in range(2):
        names = sorted(tensors)[number::2]
        shard = f"{stem}-{number + 1:05d}-of-00002.safetensors"
        save_file({name: tensors[name] for name in names}, folder / shard)
        weight_map |= dict.fromkeys(names, shard)
    whole.unlink()
    index = folder / f"{stem}.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    found = Engine.load(copy, threads=1)
    for one, other in zip(
        expected._model.transformer.parameters(),
        found._model.transformer.parameters(),
        strict=True,
    ):
        assert torch.equal(one, other)
    (folder / shard).unlink()
    with pytest.raises(InvalidCheckpoint, match="is missing"):
        inspect_checkpoint(copy)


def test_a_tensor_that_is_missing_is_named_at_load(copy: Path) -> None:
    file = copy / "transformer/diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    del tensors["transformer_layers.0.attn1.to_q.weight"]
    save_file(tensors, file)
    with pytest.raises(InvalidCheckpoint, match=r"attn1\.to_q\.weight"):
        Engine.load(copy, threads=1)


@pytest.mark.parametrize(
    ("part", "changes"),
    [
        ("transformer", {}),
        ("transformer", {"num_attention_heads": 7}),
        ("transformer", {"num_hidden_layers": 9}),
        ("transformer", {"intermediate_size": 11}),
        ("transformer", {"block_num_heads": 5}),
        ("transformer", {"layer_norm_eps": "small"}),
        ("transformer", {"use_bias": True}),
        ("vqvae", {"layers_per_block": 5}),
        ("vqvae", {"block_out_channels": [8, 8, 8, 8]}),
        ("vqvae", {"norm_num_groups": 3}),
        ("vqvae", {"act_fn": "nothing"}),
        ("text_encoder", {"num_hidden_layers": 9}),
        ("text_encoder", {"num_attention_heads": 7}),
        ("text_encoder", {"hidden_act": "nothing"}),
        ("text_encoder", {"vocab_size": 5}),
        ("tokenizer", {"model_max_length": 77}),
    ],
)
def test_what_passes_the_check_also_loads(
    copy: Path, part: str, changes: dict[str, object]
) -> None:
    _edit(copy / part / CONFIGS[part], **changes)
    with contextlib.ExitStack() as loads:
        try:
            check_loads(inspect_checkpoint(copy))
        except InvalidCheckpoint:
            # Loading raises as well; not always the farm's own error, which the check is for.
            loads.enter_context(pytest.raises(Exception, match=r"\S"))
        Engine.load(copy, threads=1)


@pytest.mark.parametrize(
    ("part", "key", "value"),
    [
        ("vqvae", "norm_type", "spatial"),
        ("vqvae", "mid_block_add_attention", True),
        ("vqvae", "up_block_types", ["AttnUpDecoderBlock2D"] * 4),
        ("text_encoder", "hidden_act", "relu"),
        ("text_encoder", "eos_token_id", [513]),
        ("transformer", "num_attention_heads", 7),
        ("transformer", "layer_norm_eps", "small"),
        ("text_encoder", "layer_norm_eps", "small"),
    ],
)
def test_a_model_of_another_kind_is_refused_by_the_value_that_says_so(
    copy: Path, part: str, key: str, value: object
) -> None:
    _edit(copy / part / CONFIGS[part], **{key: value})
    with pytest.raises(InvalidCheckpoint) as refused:
        check_loads(inspect_checkpoint(copy))
    assert part in str(refused.value)
    assert key in str(refused.value) or str(value) in str(refused.value)


def test_a_damaged_tokenizer_is_told_before_it_is_used(copy: Path) -> None:
    (copy / "tokenizer/vocab.json").write_text("{}")
    (copy / "tokenizer/merges.txt").write_bytes(b"\xff\x00")
    with pytest.raises(InvalidCheckpoint, match="tokenizer"):
        check_loads(inspect_checkpoint(copy))


def test_farm_json_names_and_defaults(copy: Path) -> None:
    (copy / "farm.json").write_text(
        json.dumps({"name": "my model!", "description": "d", "default_guidance_scale": 3})
    )
    found = inspect_checkpoint(copy)
    assert (found.info.id, found.description) == ("my-model", "d")
    assert found.info.default_guidance == 3.0


def test_the_same_seed_makes_the_same_bytes(tmp_path: Path) -> None:
    for name, seed in (("a", 4), ("b", 4), ("c", 5)):
        make_tiny(tmp_path / name / "x", seed=seed, num_hidden_layers=1)
    revisions = [inspect_checkpoint(tmp_path / name / "x").info.revision for name in "abc"]
    assert revisions[0] == revisions[1] != revisions[2]


def test_looking_at_a_checkpoint_needs_no_torch(checkpoint: Path) -> None:
    code = (
        "import sys\nsys.modules.update(dict.fromkeys(['torch', 'diffusers', 'transformers']))\n"
        "from farm.checkpoints.inspect import inspect_checkpoint\n"
        "print(inspect_checkpoint(sys.argv[1]))"
    )
    subprocess.run([sys.executable, "-c", code, str(checkpoint)], check=True, timeout=60)


def test_a_checkpoint_that_diffusers_has_saved_draws_the_same(
    checkpoint: Path, tmp_path: Path
) -> None:
    """Its configurations name every value, and the tokenizer is one file."""
    from diffusers import AmusedPipeline

    AmusedPipeline.from_pretrained(checkpoint).save_pretrained(tmp_path / "saved")
    engines = [Engine.load(path, threads=1) for path in (checkpoint, tmp_path / "saved")]
    first, second = (
        draw(engine, random_case(Random(4), engine.checkpoint, rng="farm-1", mode="img2img"))[0]
        for engine in engines
    )
    assert np.array_equal(first.tokens, second.tokens)
    assert np.array_equal(first.pixels, second.pixels)
