"""Measures what negative prompts, img2img and inpainting do to a checkpoint's pictures."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from caption import prompt
from diffusers import AmusedImg2ImgPipeline, AmusedInpaintPipeline, AmusedPipeline
from diffusers.image_processor import VaeImageProcessor
from evaluate import held_out_scenes, load, render, side_of
from judge import judge, matches, nearest, saturation
from PIL import Image
from scene import Pixels, Scene, draw


class Avoided(NamedTuple):
    """Share of pictures that show a colour: asked for, left open, and as negative prompt."""

    asked: float
    open: float
    negative: float


class Kept(NamedTuple):
    """Inpainting: what stayed outside the mask's cells."""

    tokens: bool  # every token there is the input's
    grey_levels: float  # mean difference from the input's round trip there
    worst: int  # the largest one


def colour_shares(pipeline: AmusedPipeline, colour: str, *, guidance: float) -> Avoided:
    """How many of 32 backgrounds get the colour, as the word takes its three roles."""
    words = f"{colour} background"

    def share(text: str, negative: str | None) -> float:
        pictures = render(pipeline, [text] * 32, steps=12, guidance=guidance, negative=negative)
        return sum(judge(picture).background == colour for picture in pictures) / 32

    return Avoided(share(words, None), share("a circle", None), share("a circle", words))


def scores(pipeline: AmusedPipeline, *, guidance: float) -> tuple[float, float]:
    """Mean vividness at aesthetic score 3 and at 6, over the same prompts."""
    texts = [prompt(scene) for scene in held_out_scenes(16)]
    low, high = (
        np.mean(
            [
                saturation(picture)
                for picture in render(pipeline, texts, steps=12, guidance=guidance, score=score)
            ]
        )
        for score in (3, 6)
    )
    return float(low), float(high)


def crops(pipeline: AmusedPipeline, *, guidance: float) -> float:
    """How far a crop of a quarter from the left moves the object to the left, in pixels."""
    side = side_of(pipeline)
    texts = [f"a small {colour} circle on a black background" for colour in ("red", "white")] * 8

    def middle(crop: tuple[int, int]) -> float:
        pictures = render(pipeline, texts, steps=12, guidance=guidance, crop=crop)
        columns = [np.nonzero(nearest(picture) != 7)[1] for picture in pictures]
        return float(np.mean([c.mean() for c in columns if c.size]))

    return middle((0, 0)) - middle((0, side // 4))


def img2img(
    pipeline: AmusedPipeline, *, strength: float, guidance: float, count: int = 48
) -> tuple[float, float]:
    """Shares of pictures that keep the input's object, and that show the prompt's instead."""
    editor = AmusedImg2ImgPipeline(**pipeline.components)
    editor.set_progress_bar_config(disable=True)
    side = side_of(pipeline)
    scenes = held_out_scenes(2 * count)
    inputs, wanted = scenes[:count], scenes[count:]
    kept = followed = 0
    # One at a time: the pipeline masks a batch of pictures with one draw.
    for number, (scene, other) in enumerate(zip(inputs, wanted, strict=True)):
        out = editor(
            prompt(other),
            Image.fromarray(draw(scene, side)),
            strength=strength,
            guidance_scale=guidance,
            generator=torch.Generator().manual_seed(number),
        )
        verdict = judge(np.asarray(out.images[0]))
        kept += all(matches(verdict, scene)[:4])
        followed += all(matches(verdict, other)[:4])
    return kept / count, followed / count


def inpaint(pipeline: AmusedPipeline, scene: Scene, *, guidance: float) -> Kept:
    """Repaints the cells in the middle of a picture with another prompt."""
    components = dict(pipeline.components)
    components["scheduler"] = type(pipeline.scheduler).from_config(pipeline.scheduler.config)
    editor = AmusedInpaintPipeline(**components)  # it turns its scheduler's schedule to linear
    editor.set_progress_bar_config(disable=True)
    # Its own one rounds the mask of a small picture down to nothing.
    editor.mask_processor = VaeImageProcessor(
        vae_scale_factor=1, do_normalize=False, do_binarize=True, do_convert_grayscale=True
    )
    grid = pipeline.transformer.config.sample_size
    cells = np.zeros((grid, grid), dtype=bool)
    cells[grid // 4 : -grid // 4, grid // 4 : -grid // 4] = True
    side = side_of(pipeline)
    wide = cells.repeat(side // grid, 0).repeat(side // grid, 1)
    image = Image.fromarray(draw(scene, side))
    tokens = editor(
        f"a yellow cross on a {scene.background} background",
        image,
        Image.fromarray(wide.astype(np.uint8) * 255),
        guidance_scale=guidance,
        generator=torch.Generator().manual_seed(0),
        output_type="latent",
    ).images
    before = encode(pipeline, image)
    change = np.abs(decode(pipeline, tokens).astype(int) - decode(pipeline, before))[~wide]
    same = bool((tokens == before)[0][torch.from_numpy(~cells)].all())
    return Kept(same, float(change.mean()), int(change.max()))


def encode(pipeline: AmusedPipeline, image: Image.Image) -> torch.Tensor:
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 255
    with torch.no_grad():
        latents = pipeline.vqvae.encode(pixels).latents
        ids = pipeline.vqvae.quantize(latents)[2][2]
    return ids.reshape(1, *latents.shape[2:])


def decode(pipeline: AmusedPipeline, tokens: torch.Tensor) -> Pixels:
    shape = (*tokens.shape, pipeline.vqvae.config.latent_channels)
    with torch.no_grad():
        sample = pipeline.vqvae.decode(tokens, force_not_quantize=True, shape=shape).sample
    return (sample[0].clip(0, 1).permute(1, 2, 0) * 255).round().byte().numpy()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--guidance", type=float, default=2.0)
    options = parser.parse_args()
    pipeline, guidance = load(options.checkpoint), options.guidance
    avoided = {c: colour_shares(pipeline, c, guidance=guidance) for c in ("red", "blue", "white")}
    print("backgrounds of a colour: asked for, open, negative:", avoided)
    print("vividness at score 3 and 6:", scores(pipeline, guidance=guidance))
    print("pixels to the left by a crop from the left:", crops(pipeline, guidance=guidance))
    for strength in (0.2, 0.5, 0.9):
        kept, followed = img2img(pipeline, strength=strength, guidance=guidance)
        print(f"img2img at strength {strength}: keeps {kept:.0%}, follows {followed:.0%}")
    print("inpainting:", inpaint(pipeline, held_out_scenes(1)[0], guidance=guidance))


if __name__ == "__main__":
    main()
