"""Where a checkpoint's files lie, and how they are read without loading them."""

import hashlib
import json
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from farm.errors import InvalidCheckpoint

COMPONENTS: Mapping[str, tuple[str, frozenset[str]]] = {
    "scheduler": ("diffusers", frozenset({"AmusedScheduler"})),
    "text_encoder": ("transformers", frozenset({"CLIPTextModelWithProjection"})),
    "tokenizer": ("transformers", frozenset({"CLIPTokenizer", "CLIPTokenizerFast"})),
    "transformer": ("diffusers", frozenset({"UVit2DModel"})),
    "vqvae": ("diffusers", frozenset({"VQModel"})),
}
PIPELINES = frozenset({"AmusedPipeline", "AmusedImg2ImgPipeline", "AmusedInpaintPipeline"})
WEIGHTS: Mapping[str, str] = {
    "transformer": "diffusion_pytorch_model",
    "vqvae": "diffusion_pytorch_model",
    "text_encoder": "model",
}
CONFIGS: Mapping[str, str] = {
    "scheduler": "scheduler_config.json",
    "text_encoder": "config.json",
    "tokenizer": "tokenizer_config.json",
    "transformer": "config.json",
    "vqvae": "config.json",
}
PICKLES = (".bin", ".ckpt", ".pt", ".pth", ".pkl")
DTYPES = {"F32": 4, "F16": 2, "BF16": 2, "F64": 8, "I64": 8, "I32": 4, "U8": 1, "BOOL": 1}
LFS_POINTER = b"version https://git-lfs.github.com/spec/"  # how such a file begins
MAX_HEADER = 100_000_000  # bytes; the format's own limit
MAX_JSON = 50_000_000  # bytes


def read_json(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise missing(file)
    if file.stat().st_size > MAX_JSON:
        raise InvalidCheckpoint(f"{_short(file)} is larger than {MAX_JSON // 10**6} MB")
    text = file.read_bytes()
    if text.startswith(LFS_POINTER):
        raise _pointer(file)
    try:
        data = json.loads(text.decode("utf-8"))
    except (ValueError, RecursionError):
        raise InvalidCheckpoint(
            f"{_short(file)} is not valid JSON", hint="copy the checkpoint again"
        ) from None
    if not isinstance(data, dict):
        raise InvalidCheckpoint(f"{_short(file)} is not a JSON object")
    return data


def weight_files(folder: Path, stem: str) -> list[Path]:
    """The safetensors files of one component, sharded or not."""
    whole, index = folder / f"{stem}.safetensors", folder / f"{stem}.safetensors.index.json"
    if whole.is_file():
        return [whole]
    if not index.is_file():
        pickles = [file.name for file in sorted(folder.glob("*")) if file.suffix in PICKLES]
        if pickles:
            raise InvalidCheckpoint(
                f"{folder.name}/{pickles[0]} holds pickled weights, which can run code; "
                "only safetensors are loaded",
                hint="save the checkpoint with save_pretrained(..., safe_serialization=True)",
            )
        if variants := sorted(file.name for file in folder.glob(f"{stem}.*.safetensors")):
            raise InvalidCheckpoint(
                f"{folder.name} holds only the variant {variants[0]}, not {whole.name}",
                hint=f"rename it to {whole.name}, or download the checkpoint without a variant; "
                "the worker's FARM_DTYPE chooses the precision",
            )
        raise missing(whole)
    shards = read_json(index).get("weight_map")
    if not isinstance(shards, dict) or not shards:
        raise InvalidCheckpoint(f"{_short(index)} has no weight_map")
    names = sorted({str(name) for name in shards.values()})
    for name in names:
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise InvalidCheckpoint(f"{_short(index)} names {name!r}, not a file beside it")
        if not (folder / name).is_file():
            raise missing(folder / name)
    return [folder / name for name in names]


def read_tensors(folder: Path, stem: str) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor, from the files' headers alone."""
    found: dict[str, tuple[int, ...]] = {}
    for file in weight_files(folder, stem):
        found.update(_read_header(file))
    return found


def _read_header(file: Path) -> Iterator[tuple[str, tuple[int, ...]]]:
    size = file.stat().st_size
    damaged = InvalidCheckpoint(
        f"{_short(file)} is damaged or cut short", hint="copy or download the checkpoint again"
    )
    with file.open("rb") as stream:
        head = stream.read(8)
        if head == LFS_POINTER[:8]:
            raise _pointer(file)
        length = struct.unpack("<Q", head)[0] if len(head) == 8 else 0
        if not 2 <= length <= min(MAX_HEADER, size - 8):
            raise damaged
        try:
            header = json.loads(stream.read(length))
        except (ValueError, RecursionError):
            raise damaged from None
    if not isinstance(header, dict):
        raise damaged
    header.pop("__metadata__", None)
    end = 0
    try:
        for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
            start, stop = entry["data_offsets"]
            shape = tuple(int(length) for length in entry["shape"])
            if entry["dtype"] not in DTYPES:
                raise InvalidCheckpoint(
                    f"{_short(file)} holds {entry['dtype']} weights, which the farm does not load",
                    hint="use the checkpoint as it was published, in float32, float16 or bfloat16",
                )
            count = DTYPES[entry["dtype"]]
            for side in shape:
                count *= side
            if start != end or stop - start != count:
                raise damaged
            end = stop
            yield name, shape
    except (KeyError, TypeError, ValueError, OverflowError):
        raise damaged from None
    if end != size - 8 - length:
        raise damaged


def deciding_files(path: Path) -> list[Path]:
    """Every file that decides what the checkpoint draws, in the order of their names."""
    files = [file for name in COMPONENTS for file in (path / name).iterdir()]
    named = {file for name, stem in WEIGHTS.items() for file in weight_files(path / name, stem)}
    kept = [file for file in files if file in named or file.suffix in {".json", ".txt"}]
    return sorted(kept, key=lambda file: file.relative_to(path).as_posix())


def digest(path: Path) -> str:
    """First 12 hex digits of a sha256 over every file that decides what the checkpoint draws."""
    total = hashlib.sha256()
    for file in deciding_files(path):
        with file.open("rb") as stream:
            sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
        total.update(f"{file.relative_to(path).as_posix()} {sha256}\n".encode())
    return total.hexdigest()[:12]


def missing(file: Path) -> InvalidCheckpoint:
    return InvalidCheckpoint(
        f"{_short(file)} is missing",
        hint=f"a checkpoint holds model_index.json, {', '.join(sorted(COMPONENTS))}",
    )


def _pointer(file: Path) -> InvalidCheckpoint:
    return InvalidCheckpoint(
        f"{_short(file)} is a Git LFS pointer; the file itself was not fetched",
        hint="git lfs install, then git lfs pull in the checkpoint's folder",
    )


def _short(file: Path) -> str:
    return f"{file.parent.name}/{file.name}"
