"""The diffusers pipelines, one picture a call: what a row's tokens are measured against."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import UVit2DModel, VQModel
from numpy.typing import NDArray
from PIL import Image
from transformers import CLIPTextModelWithProjection, CLIPTokenizer

from farm.checkpoints.inspect import inspect_checkpoint
from farm.spec import Mode, Row
from farm_workers.bench.pipelines import make_pipeline


class Pipelines:
    """On modules that are loaded already."""

    def __init__(self, parts: dict[str, Any], mask_token_id: int) -> None:
        self.parts, self._mask_token_id = parts, mask_token_id

    def pipeline(self, mode: Mode) -> Any:
        return make_pipeline(mode, mask_token_id=self._mask_token_id, **self.parts)

    def tokens(self, row: Row, **inputs: Any) -> NDArray[np.int64]:
        found: NDArray[np.int64] = self._call(row, "latent", **inputs)[0].numpy()
        return found

    def pixels(self, row: Row, **inputs: Any) -> NDArray[np.uint8]:
        return np.asarray(self._call(row, "pil", **inputs)[0])

    def _call(
        self,
        row: Row,
        output: str,
        image: NDArray[np.uint8] | None = None,
        mask: NDArray[np.uint8] | None = None,
        latents: NDArray[np.int64] | None = None,
        embeds: Any | None = None,
    ) -> Any:
        spec = row.spec
        given: dict[str, Any] = {
            "prompt": spec.prompt,
            "num_inference_steps": spec.num_inference_steps,
            "guidance_scale": spec.guidance_scale,
            "temperature": spec.temperature,
            "micro_conditioning_aesthetic_score": spec.micro_conditioning_aesthetic_score,
            "micro_conditioning_crop_coord": spec.micro_conditioning_crop_coord,
            "generator": torch.Generator().manual_seed(row.seed),
            "output_type": output,
        }
        if embeds is None:
            given["negative_prompt"] = spec.negative_prompt or None
        else:
            for name in (
                "prompt_embeds",
                "encoder_hidden_states",
                "negative_prompt_embeds",
                "negative_encoder_hidden_states",
            ):
                given[name] = torch.from_numpy(getattr(embeds, name))
        if image is None:
            given |= {"height": spec.height, "width": spec.width}
        else:
            given |= {"image": Image.fromarray(image), "strength": spec.strength}
        if mask is not None:
            given["mask_image"] = Image.fromarray(mask, "L")
        if latents is not None:
            given["latents"] = torch.from_numpy(latents)[None]
        return self.pipeline(spec.mode)(**given).images


class Oracle(Pipelines):
    """On a checkpoint, as diffusers reads it."""

    def __init__(self, checkpoint: Path) -> None:
        parts = {
            "vqvae": VQModel.from_pretrained(checkpoint / "vqvae").eval(),
            "tokenizer": CLIPTokenizer.from_pretrained(checkpoint / "tokenizer"),
            "text_encoder": CLIPTextModelWithProjection.from_pretrained(
                checkpoint / "text_encoder"
            ).eval(),
            "transformer": UVit2DModel.from_pretrained(checkpoint / "transformer").eval(),
        }
        super().__init__(parts, inspect_checkpoint(checkpoint).info.mask_token_id)
