"""Many pictures on one sheet, each with a line of text below."""

import math
import unicodedata
from collections.abc import Sequence
from os import PathLike

from PIL import Image, ImageDraw, ImageFont

CELL = 256  # pixels; a picture's longer side is scaled to it
GAP = 16
FONT_SIZE = 15
MAX_LINES = 4  # of a caption
INK, PAPER = (32, 32, 32), (255, 255, 255)


def contact_sheet(
    pictures: Sequence[tuple[str | PathLike[str] | Image.Image, str]], columns: int
) -> Image.Image:
    """The pictures in rows of ``columns``, with their captions; small pixels stay sharp."""
    columns = max(1, min(columns, len(pictures)))
    font = ImageFont.load_default(FONT_SIZE)
    captions = [_wrap(_drawable(caption), font) for _, caption in pictures]
    line = sum(font.getmetrics()) if isinstance(font, ImageFont.FreeTypeFont) else FONT_SIZE
    rows = math.ceil(len(pictures) / columns)
    heights = [
        CELL + GAP // 2 + line * max(map(len, captions[row * columns : (row + 1) * columns]))
        for row in range(rows)
    ]
    sheet = Image.new("RGB", (GAP + columns * (CELL + GAP), GAP + sum(heights) + rows * GAP), PAPER)
    draw = ImageDraw.Draw(sheet)
    top = GAP
    for row, height in enumerate(heights):
        for column in range(min(columns, len(pictures) - row * columns)):
            number = row * columns + column
            left = GAP + column * (CELL + GAP)
            picture = _fit(pictures[number][0])
            place = (left + (CELL - picture.width) // 2, top + (CELL - picture.height) // 2)
            sheet.paste(picture, place)
            for index, text in enumerate(captions[number]):
                draw.text((left, top + CELL + GAP // 2 + index * line), text, INK, font)
        top += height + GAP
    return sheet


def _fit(source: str | PathLike[str] | Image.Image) -> Image.Image:
    if not isinstance(source, Image.Image):
        with Image.open(source) as opened:
            source = opened.convert("RGB")
    scale = CELL / max(source.size)
    size = (max(1, round(source.width * scale)), max(1, round(source.height * scale)))
    sharp = Image.Resampling.NEAREST if scale >= 2 else Image.Resampling.LANCZOS
    return source.convert("RGB").resize(size, sharp)


def _drawable(text: str) -> str:
    """Pillow's own font has English letters only: others lose their accents or are left out."""
    plain = unicodedata.normalize("NFKD", text.replace("\u00df", "ss"))
    return "".join(
        c if " " <= c <= "~" or c == "\u00b7" else "\u00b7"
        for c in " ".join(plain.split())
        if not unicodedata.combining(c)
    )


_Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def _wrap(text: str, font: _Font) -> list[str]:
    lines: list[str] = []
    rest = text
    while rest:
        end = _fitting(rest, font)
        if len(lines) == MAX_LINES - 1 and end < len(rest):
            end = _fitting(rest, font, "\u2026")
            return [*lines, rest[:end].rstrip() + "\u2026"]
        if end < len(rest) and rest[end] != " " and " " in rest[:end]:
            end = rest.rindex(" ", 0, end)
        lines.append(rest[:end])
        rest = rest[end:].lstrip()
    return lines or [""]


def _fitting(text: str, font: _Font, ending: str = "") -> int:
    """How many characters of the text are no wider than a cell; at least one."""
    low, high = 1, len(text)
    while low < high:
        middle = (low + high + 1) // 2
        if font.getlength(text[:middle] + ending) <= CELL:
            low = middle
        else:
            high = middle - 1
    return low
