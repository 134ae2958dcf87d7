"""Contact sheets."""

from pathlib import Path

import numpy as np
from PIL import Image

from farm.formats.contact_sheet import CELL, GAP, contact_sheet

RED = Image.new("RGB", (32, 16), (255, 0, 0))


def test_pictures_stand_in_rows(tmp_path: Path) -> None:
    Image.new("RGB", (300, 300), (0, 0, 255)).save(tmp_path / "blue.png")
    sheet = contact_sheet([(RED, "one"), (tmp_path / "blue.png", "two"), (RED, "three")], 2)
    assert sheet.width == GAP + 2 * (CELL + GAP)
    assert sheet.getpixel((GAP + 5, GAP + CELL // 2)) == (255, 0, 0)
    assert sheet.getpixel((GAP + CELL + GAP + 5, GAP + 5)) == (0, 0, 255)


def test_there_are_no_more_columns_than_pictures() -> None:
    assert contact_sheet([(RED, "one")], 5).width == GAP + CELL + GAP


def test_a_caption_stays_below_its_picture() -> None:
    texts = ["word " * 200, "x" * 500, "Fahrräder 🚲 中文\n\tline", ""]
    sheet = contact_sheet([(RED, text) for text in texts], 4)
    ink = np.asarray(sheet.convert("L")) < 128
    for column in range(4):
        left = GAP + column * (CELL + GAP)
        assert ink[GAP + CELL :, left : left + CELL].any() == bool(texts[column])
        assert not ink[GAP + CELL :, left - GAP // 2 : left - 1].any()
