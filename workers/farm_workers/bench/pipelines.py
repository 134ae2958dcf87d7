"""The diffusers pipelines: deprecated there, so this is the only module that imports them."""

import logging
from typing import Any

from diffusers import AmusedScheduler
from diffusers.pipelines.deprecated.amused import (
    AmusedImg2ImgPipeline,
    AmusedInpaintPipeline,
    AmusedPipeline,
)

from farm.spec import Mode

PIPELINES = {
    Mode.TEXT2IMG: AmusedPipeline,
    Mode.IMG2IMG: AmusedImg2ImgPipeline,
    Mode.INPAINT: AmusedInpaintPipeline,
}


def make_pipeline(mode: Mode, *, mask_token_id: int, **parts: Any) -> Any:
    """One pipeline on shared parts."""
    logging.getLogger("diffusers").setLevel(logging.ERROR)
    # A scheduler of its own: the inpaint pipeline changes the one it is given for everybody.
    scheduler = AmusedScheduler(mask_token_id=mask_token_id)
    pipeline = PIPELINES[mode](scheduler=scheduler, **parts)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
