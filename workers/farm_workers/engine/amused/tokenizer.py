"""CLIP's tokenizer, on the library and with the ids of transformers' CLIPTokenizer."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tokenizers import AddedToken, Regex
from tokenizers import Tokenizer as Backend
from tokenizers.models import BPE
from tokenizers.normalizers import NFC, Lowercase, Replace
from tokenizers.normalizers import Sequence as Normalizers
from tokenizers.pre_tokenizers import ByteLevel, Split
from tokenizers.pre_tokenizers import Sequence as PreTokenizers

from farm.checkpoints.layout import read_json

WORDS = (
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
)
NAMED = {  # the tokens with a use, and what they are unless a file says otherwise
    "bos_token": "<|startoftext|>",
    "eos_token": "<|endoftext|>",
    "unk_token": "<|endoftext|>",
    "pad_token": "<|endoftext|>",
}
UNLIMITED = 10**30  # tokens, where a configuration names no limit


class Encoded(NamedTuple):
    ids: list[int]  # all of the asked length
    truncated: bool


class Tokenizer:
    """From a checkpoint's folder ``tokenizer``: tokenizer.json, or vocab.json and merges.txt."""

    def __init__(self, folder: Path) -> None:
        config = read_json(folder / "tokenizer_config.json")
        whole = folder / "tokenizer.json"
        saved = read_json(whole) if whole.is_file() else {}
        if "added_tokens_decoder" not in config and (folder / "special_tokens_map.json").is_file():
            config |= read_json(folder / "special_tokens_map.json")
        named = {key: config.get(key) or token for key, token in NAMED.items()}
        vocabulary, merges = _pairs(folder, saved)
        self.model_max_length = min(config.get("model_max_length") or UNLIMITED, UNLIMITED)
        self.backend = _backend(vocabulary, merges, _content(named["unk_token"]))
        for token in _added(config, saved, named):
            self.backend.add_tokens([token])
        ids = self.backend.get_vocab()
        self.bos, self.eos, self.pad = (
            ids[_content(named[key])] for key in ("bos_token", "eos_token", "pad_token")
        )

    def encode(self, text: str, length: int) -> Encoded:
        """Between a start and an end token; what is too long is cut, what is short filled up."""
        inner = self.backend.encode(text, add_special_tokens=False).ids
        ids = [self.bos, *inner[: length - 2], self.eos]
        return Encoded(ids + [self.pad] * (length - len(ids)), len(inner) > length - 2)


def _pairs(
    folder: Path, saved: Mapping[str, Any]
) -> tuple[dict[str, int], Sequence[tuple[str, str]]]:
    """The vocabulary, and which pairs of its entries become one, the first ones first."""
    if not saved:
        found: tuple[dict[str, int], Sequence[tuple[str, str]]] = BPE.read_file(
            str(folder / "vocab.json"), str(folder / "merges.txt")
        )
        return found
    merges = (one.split(" ") if isinstance(one, str) else one for one in saved["model"]["merges"])
    return saved["model"]["vocab"], [(left, right) for left, right in merges]


def _backend(
    vocabulary: dict[str, int], merges: Sequence[tuple[str, str]], unknown: str
) -> Backend:
    backend = Backend(
        BPE(
            vocab=vocabulary,
            merges=merges,
            continuing_subword_prefix="",
            end_of_word_suffix="</w>",
            unk_token=unknown,
        )
    )
    backend.normalizer = Normalizers([NFC(), Replace(Regex(r"\s+"), " "), Lowercase()])
    backend.pre_tokenizer = PreTokenizers(
        [
            Split(Regex(WORDS), behavior="removed", invert=True),
            ByteLevel(add_prefix_space=False),
        ]
    )
    return backend


def _added(
    config: Mapping[str, Any], saved: Mapping[str, Any], named: Mapping[str, Any]
) -> Iterator[AddedToken]:
    """Tokens that are found in a text before it is split into words, in the order of their ids."""
    given = config.get("added_tokens_decoder")
    if given is None:
        given = {one["id"]: one for one in saved.get("added_tokens", ())}
    flags = {one["content"]: one for _, one in sorted(given.items(), key=lambda item: int(item[0]))}
    for token in named.values():
        known = token if isinstance(token, dict) else {}
        flags.setdefault(_content(token), {**known, "content": _content(token), "special": True})
    for content, known in flags.items():
        special = bool(known.get("special")) or content in map(_content, named.values())
        sides = {key: bool(known.get(key)) for key in ("lstrip", "rstrip", "single_word")}
        normalized = bool(known.get("normalized", not special))
        yield AddedToken(content, special=special, normalized=normalized, **sides)


def _content(token: Any) -> str:
    return str(token["content"] if isinstance(token, dict) else token)
