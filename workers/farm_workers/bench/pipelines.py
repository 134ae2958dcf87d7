"""The diffusers pipelines: deprecated there, so this is the only module that imports them."""

import logging
from typing import Any

import torch
from diffusers import AmusedScheduler, UVit2DModel, VQModel
from diffusers.pipelines.deprecated.amused import (
    AmusedImg2ImgPipeline,
    AmusedInpaintPipeline,
    AmusedPipeline,
)
from tokenizers.processors import RobertaProcessing
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, PreTrainedTokenizerFast

from farm.spec import Mode
from farm_workers.engine.amused.parts import Part, Parts
from farm_workers.engine.amused.tokenizer import Tokenizer

PIPELINES = {
    Mode.TEXT2IMG: AmusedPipeline,
    Mode.IMG2IMG: AmusedImg2ImgPipeline,
    Mode.INPAINT: AmusedInpaintPipeline,
}


def upstream_modules(parts: Parts) -> dict[str, Any]:
    """Modules of diffusers and transformers on the same weights, by their names in a pipeline."""
    text = {key: value for key, value in parts.text_encoder.config.items() if key[0] != "_"}
    with torch.device("meta"):
        modules: dict[str, Any] = {
            "transformer": UVit2DModel.from_config(parts.transformer.config),
            "vqvae": VQModel.from_config(parts.vqvae.config),
        }
    # Not on "meta": it has the positions' numbers beside its weights.
    modules["text_encoder"] = CLIPTextModelWithProjection(CLIPTextConfig(**text))
    for name, module in modules.items():
        part: Part = getattr(parts, name)
        module.load_state_dict(part.tensors, assign=True)
        module.to(next(iter(part.tensors.values())).device).eval().requires_grad_(False)
    return {**modules, "tokenizer": _tokenizer(parts.tokenizer)}


def _tokenizer(given: Tokenizer) -> PreTrainedTokenizerFast:
    words = {number: word for word, number in given.backend.get_vocab().items()}
    eos, bos = words[given.eos], words[given.bos]
    given.backend.post_processor = RobertaProcessing(
        (eos, given.eos), (bos, given.bos), trim_offsets=False, add_prefix_space=False
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=given.backend,
        model_max_length=given.model_max_length,
        bos_token=bos,
        eos_token=eos,
        pad_token=words[given.pad],
    )


def make_pipeline(mode: Mode, *, mask_token_id: int, **parts: Any) -> Any:
    """One pipeline on shared parts."""
    logging.getLogger("diffusers").setLevel(logging.ERROR)
    # A scheduler of its own: the inpaint pipeline changes the one it is given for everybody.
    scheduler = AmusedScheduler(mask_token_id=mask_token_id)
    pipeline = PIPELINES[mode](scheduler=scheduler, **parts)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
