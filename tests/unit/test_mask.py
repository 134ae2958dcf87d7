"""Masks as people send them: any picture, of which only black and white is kept."""

import numpy as np
import pytest
from pictures import GREY, SIZE, read, save
from PIL import Image

from farm.formats.decoding import probe

# Pillow's own warnings; farm.formats.decoding silences them, but pytest listens again.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::RuntimeWarning")


def test_a_binary_mask_needs_no_words() -> None:
    source = GREY.point(lambda value: 255 if value >= 100 else 0)
    for data in (save(source, "PNG"), save(source.convert("1"), "PNG"), save(source, "BMP")):
        decoded = read(data, "mask")
        assert (decoded.pixels == np.asarray(source)).all()
        assert (decoded.pixels.dtype, decoded.notes) == (np.uint8, ())


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "LA", "P", "CMYK", "I;16"])
def test_any_mask_is_cut_at_128_of_its_luminance(mode: str) -> None:
    grey = Image.fromarray(np.arange(256, dtype=np.uint8).repeat(24).reshape(SIZE))
    data = save(
        Image.fromarray(np.asarray(grey).astype(np.uint16) * 257) if mode == "I;16"
        else grey.convert(mode),
        "TIFF" if mode == "CMYK" else "PNG",
    )  # fmt: skip
    decoded = read(data, "mask")
    assert (decoded.pixels == np.where(np.asarray(grey) >= 128, 255, 0)).all()
    assert "mask: its luminance decides: 128 to 255 is repainted, 0 to 127 is kept" in (
        decoded.notes
    )
    assert set(probe(data, "mask").notes) == set(decoded.notes)


def test_the_transparent_parts_of_a_mask_are_kept() -> None:
    brush = Image.new("RGBA", (96, 64), (255, 255, 255, 0))
    brush.paste((255, 255, 255, 255), (0, 0, 48, 64))
    decoded = read(save(brush, "PNG"), "mask")
    assert (decoded.pixels[:, :48] == 255).all()
    assert (decoded.pixels[:, 48:] == 0).all()
    assert decoded.notes[0] == "mask: has transparent parts; it was laid on black, which is kept"


def test_a_mask_that_marks_nothing_says_so() -> None:
    for data in (save(Image.new("L", (96, 64)), "PNG"), save(Image.new("RGBA", (96, 64)), "PNG")):
        assert "mask: it marks nothing to repaint" in probe(data, "mask").notes


def test_a_resized_mask_stays_binary() -> None:
    disc = Image.fromarray((np.hypot(*np.mgrid[-20:20, -30:30]) < 15).astype(np.uint8) * 255)
    decoded = read(save(disc, "PNG"), "mask")
    assert set(np.unique(decoded.pixels)) == {0, 255}
