"""Tokens that are decoded by the commands."""

from typing import Any

import numpy as np
import pytest
from fake_engine import INFO
from numpy.typing import NDArray

from farm.cli import token_decoder
from farm.cli.token_decoder import TokenDecoder
from farm.formats.picture_file import Facts
from farm.spec import RenderRequest


class Engine:
    numerics = "n"

    def __init__(self) -> None:
        self.calls: list[int] = []

    def decode(self, tokens: NDArray[np.uint16]) -> NDArray[np.uint16]:
        self.calls.append(len(tokens))
        return tokens + 1


def test_neighbours_of_one_size_are_decoded_together_and_come_in_their_order(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(token_decoder, "TOGETHER_TOKENS", 12)
    spec = RenderRequest(prompt="p").resolve(INFO, seed=1)
    shapes = [(2, 2)] * 5 + [(2, 8), (2, 8), (2, 2)]
    pictures = [
        (number, Facts(spec, 0, "n", np.full(shape, number, np.uint16)))
        for number, shape in enumerate(shapes)
    ]
    decoder, engine = TokenDecoder((), 0), Engine()
    known: dict[str, Any] = {spec.checkpoint: engine}
    monkeypatch.setattr(decoder, "_engines", known)
    found = list(decoder(pictures))
    assert [number for number, _, _ in found] == list(range(len(shapes)))
    for number, facts, pixels in found:
        np.testing.assert_array_equal(pixels, facts.tokens + 1)
        assert pixels.shape == shapes[number]
    assert engine.calls == [3, 2, 1, 1, 1]
