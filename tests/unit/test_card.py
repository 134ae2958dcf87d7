"""The card of a data set, read as the Hub reads it."""

from pathlib import Path

import pyarrow as pa
import pytest
from huggingface_hub import DatasetCard

from farm.export.card import CARD, MANIFEST, CardFacts, write_card


@pytest.mark.parametrize("license_name", ["cc0-1.0", "mine: all rights # reserved", "no", "[1"])
def test_a_card_is_read_whatever_the_user_has_written(tmp_path: Path, license_name: str) -> None:
    (tmp_path / MANIFEST).write_bytes(b"")
    write_card(
        tmp_path,
        license_name,
        "red\n---\nblue",
        CardFacts(),
        {"train": 1},
        "data/{split}-*.parquet",
        {"a|b\nc": pa.string()},
    )
    card = DatasetCard.load(tmp_path / CARD)
    assert card.data.license == license_name
    assert "\n# red --- blue\n" in card.content
    assert "| `a\\|b c` | string |" in card.content
