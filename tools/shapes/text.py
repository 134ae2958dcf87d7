"""The tokenizer and text encoder of the shapes checkpoints, in CLIP's layout."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import caption
from tokenizers.pre_tokenizers import ByteLevel
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, CLIPTokenizer

LENGTH = 77
WIDTH = 72
PROJECTION = 128
START, END = "<|startoftext|>", "<|endoftext|>"

Pair = tuple[str, str]


def merges(words: list[str]) -> list[Pair]:
    """Byte-pair merges, the most frequent pair first, until every word is one token."""
    spelled = [[*word[:-1], f"{word[-1]}</w>"] for word in words]
    found: list[Pair] = []
    while pairs := Counter(p for parts in spelled for p in pairwise(parts)):
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        found.append(best)
        spelled = [merge(parts, best) for parts in spelled]
    return found


def merge(parts: list[str], pair: Pair) -> list[str]:
    joined: list[str] = []
    for part in parts:
        if joined and (joined[-1], part) == pair:
            joined[-1] += part
        else:
            joined.append(part)
    return joined


def build_tokenizer() -> CLIPTokenizer:
    """All bytes, with and without a word's end, so that any text is known; then the words."""
    found = merges(caption.words())
    symbols = sorted(ByteLevel.alphabet())
    tokens = [*symbols, *(f"{s}</w>" for s in symbols), *("".join(p) for p in found), START, END]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    return CLIPTokenizer(vocabulary, found, model_max_length=LENGTH)


def build_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModelWithProjection:
    """Three layers: the pipelines read the sequence one layer before the last."""
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=4 * WIDTH,
        projection_dim=PROJECTION,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=LENGTH,
        hidden_act="quick_gelu",
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return CLIPTextModelWithProjection(config)
