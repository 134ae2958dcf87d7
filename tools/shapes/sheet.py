"""Draws the sheet of pictures and prompts that people look at before a checkpoint ships."""

from __future__ import annotations

import argparse
import textwrap
from pathlib import Path

from caption import prompt
from evaluate import held_out_pairs, held_out_scenes, load, render
from PIL import Image, ImageDraw, ImageFont

COLUMNS = 8
TILE = 128
LABEL = 62
GAP = 8
LINE = 21  # letters


def prompts(count: int, skip: int) -> list[str]:
    """Held-out prompts, every eighth of a pair."""
    singles = [prompt(scene) for scene in held_out_scenes(skip + count)[skip:]]
    pairs = [prompt(scene) for scene in held_out_pairs(skip + count)[skip:]]
    return [pairs[i] if i % COLUMNS == COLUMNS - 1 else singles[i] for i in range(count)]


def sheet(pictures: list[tuple[Image.Image, str]]) -> Image.Image:
    rows = -(-len(pictures) // COLUMNS)
    size = (COLUMNS * (TILE + GAP) + GAP, rows * (TILE + LABEL + GAP) + GAP)
    page = Image.new("RGB", size, (225, 225, 225))
    pen = ImageDraw.Draw(page)
    font = ImageFont.load_default(11)
    for number, (picture, words) in enumerate(pictures):
        x = GAP + number % COLUMNS * (TILE + GAP)
        y = GAP + number // COLUMNS * (TILE + LABEL + GAP)
        page.paste(picture.resize((TILE, TILE), Image.Resampling.NEAREST), (x, y))
        lines = textwrap.wrap(f"{number + 1}. {words}", LINE)
        pen.multiline_text(
            (x, y + TILE + 1), "\n".join(lines), fill=(0, 0, 0), font=font, spacing=0
        )
    return page


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--guidance", type=float, default=2.0)
    options = parser.parse_args()
    each = 64 // len(options.checkpoint)
    pictures = []
    for number, folder in enumerate(options.checkpoint):
        texts = prompts(each, number * each)
        made = render(load(folder), texts, steps=12, guidance=options.guidance)
        pictures += [(Image.fromarray(p), words) for p, words in zip(made, texts, strict=True)]
    sheet(pictures).save(options.out, optimize=True)


if __name__ == "__main__":
    main()
