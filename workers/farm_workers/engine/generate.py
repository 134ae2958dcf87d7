"""Requests in, results out as they finish: the engine as a library, for one script or notebook."""

import hashlib
import io
import itertools
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from farm.errors import FarmError, InvalidInput
from farm.formats.decoding import probe, read_image, read_mask
from farm.spec import RenderRequest, RenderSpec, derived_seed
from farm_workers.engine.row import Result

if TYPE_CHECKING:
    from farm_workers.engine.engine import Engine

Picture = Image.Image | NDArray[np.uint8] | str | Path | bytes


class _Adapter(NamedTuple):
    sha256: str  # of its file
    loaded: Any  # as ``Engine.add`` takes it


def generate(
    engine: "Engine",
    requests: Iterable[RenderRequest | Mapping[str, Any]],
    images: Iterable[Picture | None] | None,
    masks: Iterable[Picture | None] | None,
    adapters: Mapping[str, str | Path | bytes],
    seed: int,
) -> Iterator[Result]:
    """See ``Engine.generate``."""
    if not engine.idle:
        raise InvalidInput("the engine has other rows", field="rows", hint="step it until idle")
    files = {name: _adapter(engine, file) for name, file in adapters.items()}
    given = zip(requests, _pictures(images), _pictures(masks), strict=False)
    rows = _rows(engine, given, files, seed)
    inside: Counter[Hashable] = Counter()  # rows, by the number of their request
    try:
        more = True
        while more or not engine.idle:
            while more and engine.room():
                found = next(rows, None)
                if isinstance(found, Result):
                    yield found
                elif found is not None:
                    try:
                        engine.add(**found)
                    except FarmError as error:
                        yield Result.failed(found["key"], found["row"].index, error)
                    else:
                        inside[found["key"]] += 1
                more = found is not None
            for result in engine.step():
                inside -= Counter([result.key])
                yield result
    finally:
        engine.cancel(inside)  # the rows of a caller who has seen enough


def _rows(
    engine: "Engine",
    requests: Iterable[tuple[Any, Picture | None, Picture | None]],
    adapters: Mapping[str, _Adapter],
    seed: int,
) -> Iterator[dict[str, Any] | Result]:
    """What ``Engine.add`` takes for each row, or what becomes of a request that is refused."""
    for number, given in enumerate(requests):
        try:
            spec, inputs = _resolve(engine, *given, adapters, derived_seed(seed, number))
        except FarmError as error:
            yield Result.failed(number, 0, error)
            continue
        for row in spec.rows():
            yield {"key": number, "row": row, **inputs}


def _resolve(
    engine: "Engine",
    request: RenderRequest | Mapping[str, Any],
    image: Picture | None,
    mask: Picture | None,
    adapters: Mapping[str, _Adapter],
    seed: int,
) -> tuple[RenderSpec, dict[str, Any]]:
    """A request with every default, named after the bytes of its pictures, and its inputs."""
    if isinstance(request, RenderRequest):
        request = request.model_dump(exclude_unset=True)
    pictures = {"image": image, "mask_image": mask}
    files = {field: _bytes(one, field) for field, one in pictures.items() if one is not None}
    names = {field: hashlib.sha256(data).hexdigest() for field, data in files.items()}
    parsed = RenderRequest.parse({**request, **names} if isinstance(request, Mapping) else request)
    here = engine.checkpoint
    if parsed.checkpoint not in {None, here.name, here.id, here.id.rpartition("/")[2]}:
        raise InvalidInput(f"is {parsed.checkpoint}; here is {here.name}", field="checkpoint")
    for choice in parsed.adapters:
        if choice.adapter not in adapters:
            raise InvalidInput(f"{choice.adapter} is not among adapters=", field="adapters")
    found = probe(files["image"], "image") if image is not None else None
    spec = parsed.resolve(
        here,
        seed=seed,
        picture=None if found is None else (found.height, found.width),
        adapters={name: one.sha256 for name, one in adapters.items()},
    )
    size, named = (spec.height, spec.width), {one.sha256 for one in spec.adapters}
    inputs: dict[str, Any] = {
        "image": None if image is None else read_image(files["image"], size).pixels,
        "mask": None if mask is None else read_mask(files["mask_image"], size).pixels,
        "adapters": {one.sha256: one.loaded for one in adapters.values() if one.sha256 in named},
    }
    return spec, inputs


def _pictures(given: Iterable[Picture | None] | None) -> Iterator[Picture | None]:
    """One for each request, read no further than is needed."""
    yield from itertools.repeat(None) if given is None else given
    raise InvalidInput("there are fewer pictures than requests", field="images")


def _adapter(engine: "Engine", file: str | Path | bytes) -> _Adapter:
    data = _bytes(file, "adapters")
    return _Adapter(hashlib.sha256(data).hexdigest(), engine.read_adapter(data))


def _bytes(given: Picture, field: str) -> bytes:
    """Of a file; what is no file becomes a PNG, so that one set of rules holds for all."""
    if isinstance(given, bytes):
        return given
    try:
        if isinstance(given, str | Path):
            return Path(given).read_bytes()
        picture = Image.fromarray(given) if isinstance(given, np.ndarray) else given
        target = io.BytesIO()
        picture.save(target, "PNG", compress_level=1)
    except (AttributeError, OSError, TypeError, ValueError) as error:
        raise InvalidInput(f"cannot be read: {error}", field=field) from None
    return target.getvalue()
