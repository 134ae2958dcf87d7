"""A checkpoint on disk: found, checked without loading it, and described."""

import hashlib
import importlib.util
import json
import re
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from farm.checkpoints.description import CONFIGS, describe, expected_tensors
from farm.errors import InvalidCheckpoint
from farm.spec import CheckpointInfo

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
PICKLES = (".bin", ".ckpt", ".pt", ".pth", ".pkl")
DTYPES = {"F32": 4, "F16": 2, "BF16": 2, "F64": 8, "I64": 8, "I32": 4, "U8": 1, "BOOL": 1}
LFS_POINTER = b"version https://git-lfs.github.com/spec/"  # how such a file begins
MAX_HEADER = 100_000_000  # bytes; the format's own limit
MAX_JSON = 50_000_000  # bytes
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_COMMIT = re.compile(r"[0-9a-f]{40}")


def built_in() -> dict[str, Path]:
    """Checkpoints that came with the workers' package, by name; the smallest pictures first."""
    found = importlib.util.find_spec("farm_workers")
    return {
        folder.name: folder
        for place in (found.submodule_search_locations or [] if found else [])
        for folder in sorted(
            (Path(place) / "checkpoints").glob("*/"), key=lambda path: (len(path.name), path.name)
        )
    }


@dataclass(frozen=True)
class Checkpoint:
    """A directory that passed every check; nothing of it has been loaded."""

    path: Path
    info: CheckpointInfo
    description: str = ""

    def config(self, component: str) -> dict[str, Any]:
        return read_json(self.path / component / CONFIGS[component])

    def weights(self, component: str) -> list[Path]:
        return weight_files(self.path / component, WEIGHTS[component])


def inspect_checkpoint(ref: str | Path) -> Checkpoint:
    """Find and check a checkpoint: a directory, a built-in name or ``owner/name@<commit>``.

    Raises:
        InvalidCheckpoint: what is missing, damaged or refused, and the way out.
    """
    path, hub = resolve(ref)
    _check_index(path)
    parts = {name: read_json(path / name / file) for name, file in CONFIGS.items()}
    for name, config in parts.items():
        if "auto_map" in config:
            raise InvalidCheckpoint(
                f"{name}/{CONFIGS[name]} names custom code, which the farm never runs",
                hint="remove auto_map; only the classes of diffusers and transformers are known",
            )
    _check_tokenizer(path / "tokenizer")
    for name, stem in WEIGHTS.items():
        tensors = read_tensors(path / name, stem)
        for tensor, shape in expected_tensors(name, parts).items():
            if tensor not in tensors:
                raise InvalidCheckpoint(f"{name} has no tensor {tensor!r}; it is another model")
            if tensors[tensor] != shape:
                raise InvalidCheckpoint(
                    f"{name} tensor {tensor!r} has the shape {list(tensors[tensor])}, "
                    f"but its config.json says {list(shape)}"
                )
    notes = read_json(path / "farm.json") if (path / "farm.json").is_file() else {}
    if hub is None:
        name = str(notes.get("name") or path.name)
        identity, revision = re.sub(r"[^\w.-]+", "-", name).strip("-") or "checkpoint", digest(path)
    else:
        identity, revision = hub
    info = describe(identity, revision, parts, notes)
    return Checkpoint(path, info, str(notes.get("description", "")))


def resolve(ref: str | Path) -> tuple[Path, tuple[str, str] | None]:
    """The directory behind a reference and, for one of the hub, its id and commit."""
    path = Path(ref)
    if path.is_dir():
        return path.resolve(), None
    if path.exists():
        raise InvalidCheckpoint(f"{path} is a file; a checkpoint is a directory")
    text = str(ref)
    if text in (shipped := built_in()):
        return shipped[text], None
    name, _, commit = text.partition("@")
    if not _HUB_ID.fullmatch(name):
        raise InvalidCheckpoint(
            f"{text} is no directory, no built-in checkpoint and no hub id",
            hint=f"give {', '.join(['a directory', *shipped])} or owner/name@<40-digit commit>",
        )
    if not _COMMIT.fullmatch(commit):
        raise InvalidCheckpoint(
            f"{text}: no directory of that name; a hub id needs its full commit",
            hint=f"{name}@<40-digit commit>, so that the same job always gives the same pictures",
        )
    return _download(name, commit), (name, commit)


def _download(name: str, commit: str) -> Path:
    try:
        import huggingface_hub
    except ImportError:
        raise InvalidCheckpoint(
            "huggingface-hub is needed to fetch a checkpoint by its id",
            hint='install "amused-farm[worker]", or give a directory',
        ) from None
    try:
        patterns = ["*.json", "*.txt", *(f"*/{stem}*.safetensors" for stem in WEIGHTS.values())]
        found = huggingface_hub.snapshot_download(
            name, revision=commit, allow_patterns=patterns, ignore_patterns=["*.fp16.*"]
        )
    except Exception as error:  # the hub client raises a dozen unrelated classes
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InvalidCheckpoint(
            f"{name}@{commit[:12]} cannot be fetched: {reason}",
            hint="check the id and the network, or give a local directory",
        ) from None
    return Path(found)


def digest(path: Path) -> str:
    """First 12 hex digits of a sha256 over every file that decides what the checkpoint draws."""
    total = hashlib.sha256()
    files = [file for name in COMPONENTS for file in (path / name).iterdir()]
    named = {file for name, stem in WEIGHTS.items() for file in weight_files(path / name, stem)}
    for file in sorted(files, key=lambda file: file.relative_to(path).as_posix()):
        if file in named or file.suffix in {".json", ".txt"}:
            with file.open("rb") as stream:
                sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
            total.update(f"{file.relative_to(path).as_posix()} {sha256}\n".encode())
    return total.hexdigest()[:12]


def read_json(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise _missing(file)
    if file.stat().st_size > MAX_JSON:
        raise InvalidCheckpoint(f"{_short(file)} is larger than {MAX_JSON // 10**6} MB")
    if file.read_bytes().startswith(LFS_POINTER):
        raise _pointer(file)
    try:
        data = json.loads(file.read_text("utf-8"))
    except (ValueError, RecursionError):
        raise InvalidCheckpoint(
            f"{_short(file)} is not valid JSON", hint="copy the checkpoint again"
        ) from None
    if not isinstance(data, dict):
        raise InvalidCheckpoint(f"{_short(file)} holds no JSON object")
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
        raise _missing(whole)
    shards = read_json(index).get("weight_map")
    if not isinstance(shards, dict) or not shards:
        raise InvalidCheckpoint(f"{_short(index)} has no weight_map")
    names = sorted({str(name) for name in shards.values()})
    for name in names:
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise InvalidCheckpoint(f"{_short(index)} names {name!r}, which is no shard beside it")
        if not (folder / name).is_file():
            raise _missing(folder / name)
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
    except (KeyError, TypeError, ValueError):
        raise damaged from None
    if end != size - 8 - length:
        raise damaged


def _check_tokenizer(folder: Path) -> None:
    found = [
        folder / name for name in ("tokenizer.json", "vocab.json") if (folder / name).is_file()
    ]
    if not found:
        raise _missing(folder / "vocab.json")
    for file in found:
        read_json(file)


def _check_index(path: Path) -> None:
    index = read_json(path / "model_index.json")
    named = index.get("_class_name")
    if not isinstance(named, str) or named not in PIPELINES:
        raise InvalidCheckpoint(
            f"model_index.json names {named!r}, not an aMUSEd pipeline",
            hint=f"known: {', '.join(sorted(PIPELINES))}; custom code is never run",
        )
    for name, value in index.items():
        if name.startswith("_"):
            continue
        library, kinds = COMPONENTS.get(name, ("", frozenset()))
        if not isinstance(value, list) or len(value) != 2 or value[0] != library:
            raise InvalidCheckpoint(
                f"model_index.json: {name} is {value!r}, which the farm does not know",
                hint=f"expected [{library!r}, {sorted(kinds)[0]!r}]; custom code is never run"
                if kinds
                else "custom code and further components are never loaded",
            )
        if value[1] not in kinds:
            raise InvalidCheckpoint(
                f"model_index.json: {name} is of the class {value[1]!r}, "
                f"not {' or '.join(sorted(kinds))}"
            )
    for name in COMPONENTS:
        if name not in index:
            raise InvalidCheckpoint(f"model_index.json does not name the {name}")


def _missing(file: Path) -> InvalidCheckpoint:
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
