"""What a notebook's user does: arrays go in, pictures and jobs show themselves."""

import asyncio
import base64
import io
import re

import numpy as np
import pytest
from fake_worker import BAD_PROMPT, FakeWorker
from harness import Gateway
from PIL import Image

import farm_client
from farm.errors import CODES, FarmError
from farm.job import Chunk
from farm.store import keys
from farm_client import AsyncFarm, Farm, InvalidInput, RenderError

PROMPT = "a <b>red</b> circle"


def test_pictures_show_themselves(gateway: Gateway, fake_worker: FakeWorker) -> None:
    with Farm(gateway.url) as farm:
        for kind in ("png", "webp", "jpeg"):
            (image,) = farm.submit(PROMPT, format=kind).images()
            assert image.prompt == PROMPT
            assert image.read() == image.bytes()
            assert image.pil().size == (64, 64)
            html = image._repr_html_()
            assert "<b>" not in html
            (data,) = re.findall(rf'src="data:image/{kind};base64,([^"]+)"', html)
            assert base64.b64decode(data) == image.read()
            assert (image._repr_png_() is not None) == (kind == "png")
        (tokens,) = farm.submit(PROMPT, format="tokens").images()
        assert "tokens" in tokens._repr_html_()
        with pytest.raises(InvalidInput, match="tokens"):
            tokens.pil()


def test_a_job_shows_its_first_pictures(gateway: Gateway, fake_worker: FakeWorker) -> None:
    with Farm(gateway.url) as farm:
        job = farm.submit([PROMPT, BAD_PROMPT, *["a ring"] * 15], name="<i>")
        job.wait(120, check=False)
        html = job._repr_html_()
        assert "&lt;i&gt;: failed, 17 of 17, 1 failed" in html
        assert html.count("<figure") == 12
        failed = next(image for image in job.images() if image.error)
        assert failed._repr_png_() is None
        assert "the logits are not finite" in failed._repr_html_()
        with pytest.raises(RenderError):
            failed.read()


def test_the_asynchronous_picture_is_the_same(gateway: Gateway, fake_worker: FakeWorker) -> None:
    async def main() -> None:
        async with AsyncFarm(gateway.url) as farm:
            job = await farm.submit(PROMPT)
            (image,) = [image async for image in job.images()]
            assert await image.read() == await image.bytes()
            assert (await image.pil()).size == (64, 64)

    asyncio.run(main())


def test_arrays_are_inputs(gateway: Gateway) -> None:
    picture = np.random.default_rng(1).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    mask = np.zeros((64, 64), bool)
    mask[:20] = True
    row = {"prompt": "a ring", "image": picture, "mask_image": mask}
    with Farm(gateway.url) as farm:
        jobs = [farm.submit(**row), farm.submit_many([row])]
    for job in jobs:
        chunk = Chunk.model_validate_json(gateway.store.get(keys.chunk(job.id, 0)))
        spec = chunk.renders[0].spec
        assert spec.mode == "inpaint"
        assert spec.image is not None
        stored = gateway.store.get(keys.asset("local", spec.image))
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(stored))), picture)


def test_what_the_farm_raises_can_be_named() -> None:
    inner = {"invalid", "checkpoint", "out_of_memory", "lease_lost"}
    for code, kind in CODES.items():
        if code not in inner or kind is InvalidInput:
            assert getattr(farm_client, kind.__name__) is kind
    assert issubclass(farm_client.TimedOut, FarmError)


def test_wrong_names_get_a_hint(gateway: Gateway) -> None:
    with Farm(gateway.url) as farm:
        for name, meant in (("steps", "num_inference_steps"), ("n", "num_images")):
            with pytest.raises(InvalidInput, match=f"did you mean '{meant}'"):
                farm.submit("a ring", **{name: 3})
            for given in (name, meant):
                with pytest.raises(InvalidInput, match=f"defaults={{'{meant}': …}}"):
                    farm.submit_many(["a ring"], **{given: 3})
        job = farm.submit_many(["a ring", {"prompt": "x", "num_images": 2}], defaults={"seed": 3})
        assert job.status().images.total == 3
