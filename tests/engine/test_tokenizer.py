"""The tokenizer beside transformers' CLIPTokenizer, on checkpoints as several tools save them."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest
from cases import WORDS
from transformers import CLIPTokenizer

from farm.checkpoints.inspect import inspect_checkpoint
from farm_workers.engine.amused.tokenizer import Tokenizer

PIECES = [*WORDS, "<|endoftext|>", "<|STARTOFTEXT|>", "it's", "100%", "\n\t", "e\u0301", "🦊", "!"]
START = {"content": "<|startoftext|>", "lstrip": False, "rstrip": False, "single_word": False}


def _edit(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def _as_openai_saved_it(folder: Path) -> None:
    """Tokens with their flags, and padding by a token that is a letter too."""
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        _edit(folder / name, bos_token={**START, "normalized": True}, pad_token="!")


def _with_its_added_tokens(folder: Path) -> None:
    ids = json.loads((folder / "vocab.json").read_text())
    added = {str(ids["<|startoftext|>"]): {**START, "normalized": False, "special": True}}
    added["40"] = {**START, "content": "moon", "special": False}
    _edit(folder / "tokenizer_config.json", added_tokens_decoder=added)
    (folder / "special_tokens_map.json").unlink()


def _whole(folder: Path) -> None:
    """Everything in one file, as the library itself saves it."""
    CLIPTokenizer.from_pretrained(folder).save_pretrained(folder)
    for name in ("vocab.json", "merges.txt", "special_tokens_map.json"):
        (folder / name).unlink(missing_ok=True)


@pytest.mark.parametrize("change", [None, _as_openai_saved_it, _with_its_added_tokens, _whole])
@pytest.mark.parametrize("name", ["tiny", "shapes-64"])
def test_it_gives_the_ids_of_transformers(
    checkpoint: Path, tmp_path: Path, name: str, change: Callable[[Path], None] | None
) -> None:
    source = checkpoint if name == "tiny" else inspect_checkpoint(name).path
    folder = Path(shutil.copytree(source / "tokenizer", tmp_path / "tokenizer"))
    if not (folder / "special_tokens_map.json").is_file():
        (folder / "special_tokens_map.json").write_text("{}")
    if change is not None:
        (folder / "tokenizer.json").unlink(missing_ok=True)
        change(folder)
    ours, theirs, random = Tokenizer(folder), CLIPTokenizer.from_pretrained(folder), Random(1)
    assert ours.model_max_length == theirs.model_max_length
    for length in (77, 12):
        for _ in range(150):
            text = random.choice(["", " "]).join(random.choices(PIECES, k=random.randint(0, 40)))
            expected = theirs(text, padding="max_length", truncation=True, max_length=length)
            found = ours.encode(text, length)
            assert found.ids == expected.input_ids, text
            assert found.truncated == (len(theirs(text, verbose=False).input_ids) > length)
