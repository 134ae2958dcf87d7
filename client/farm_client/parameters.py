"""The parameters of a submission, as keyword arguments."""

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, Literal, Required, TypedDict

from farm.errors import InvalidInput
from farm.job import JobOptions
from farm.metadata import KNOWN, check_column, parameter_meant
from farm_client.inputs import FileInput

OnError = Literal["skip", "stop"]


class AdapterInput(TypedDict, total=False):
    """A LoRA adapter of a render."""

    adapter: Required[FileInput]  # its name at the farm, the sha256 of an uploaded file, or a file
    scale: float  # 1 unless given


class RenderParameters(TypedDict, total=False):
    """What one render takes; what is left out, the farm fills in."""

    mode: Literal["text2img", "img2img", "inpaint"] | None
    checkpoint: str | None
    negative_prompt: str | None
    height: int | None
    width: int | None
    num_inference_steps: int
    guidance_scale: float | None
    temperature: float | tuple[float, float]
    seed: int | None
    num_images: int
    image: FileInput | None
    mask_image: FileInput | None
    latents: FileInput | None
    embeds: FileInput | None
    strength: float | None
    micro_conditioning_aesthetic_score: float
    micro_conditioning_crop_coord: tuple[int, int]
    adapters: Sequence[AdapterInput] | None
    adapter_scale: float
    rng: Literal["farm-1", "torch"]


class _Own(TypedDict, total=False):
    id: str | int | None  # the caller's own; stands in the metadata
    metadata: Mapping[str, Any] | None  # kept beside the pictures


class Options(TypedDict, total=False):
    """How the job is run and stored."""

    name: str | None
    priority: Literal["urgent", "normal", "bulk"]
    sink: str
    shard_size: int | None
    format: Literal["png", "webp", "jpeg", "tokens"]
    max_failed: int
    deadline: datetime | str | None
    keep: str | None  # such as 30d: the farm removes the job so long after its end
    idempotency_key: str | None


class Submission(RenderParameters, _Own, Options, total=False):
    """Everything that ``submit`` takes besides the prompt."""


class BulkOptions(Options, total=False):
    """Everything that ``submit_many`` takes besides the renders."""

    seed: int | None  # renders without a seed get one made from it
    defaults: RenderParameters  # for renders that do not say otherwise
    matrix: Mapping[str, Sequence[Any]]  # each render once with every combination of these values
    zip: Mapping[str, Sequence[Any]]  # lists of one length, whose values go together
    on_error: OnError  # stop: one refused render, and none is taken
    # Called with the job's id of a submission in pieces, and whether it goes on with one that an
    # earlier call left unfinished: the key is then made from the content, not idempotency_key.
    resume: Callable[[str, bool], None]


def split_options(given: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Options of the job, checked, and what is left."""
    options = {name: given.pop(name) for name in Options.__annotations__ if name in given}
    for name in given.keys() - KNOWN - {"id"}:
        check_column(name)
        raise InvalidInput(
            "is not a known parameter", field=name, hint="your own data go into metadata"
        )
    return check_options(options), given


def check_on_error(given: Any) -> OnError:
    if given is None or given == "skip":
        return "skip"
    if given == "stop":
        return "stop"
    raise InvalidInput(f"must be skip or stop; got {str(given)[:40]!r}", field="on_error")


def check_options(options: dict[str, Any]) -> dict[str, Any]:
    """The options as JSON; wrong ones are refused before anything is uploaded."""
    given = {name: value for name, value in options.items() if value is not None}
    for name in given.keys() - JobOptions.model_fields.keys():
        if meant := parameter_meant(name):
            raise InvalidInput(
                "is not an option of the job",
                field=name,
                hint=f"for every render that does not say otherwise: defaults={{{meant!r}: …}}",
            )
    if given.get("idempotency_key") == "":
        raise InvalidInput("is empty; leave it out or give a text", field="idempotency_key")
    checked = JobOptions.parse(given)
    if checked.idempotency_key is None:
        checked.check_deadline()  # else the job may be there
    return checked.model_dump(mode="json", include=set(given))
