"""Every parameter of a render in one table: its type, limits, default, help and other names.

``RenderRequest`` checks by it, ``farm submit`` takes its flags from it, the README's table is
compared with it, and refusals take their hints from it.
"""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import AliasChoices, BaseModel, BeforeValidator, ConfigDict, Field

from farm.spec.adapter import MAX_ADAPTERS, MAX_SCALE, AdapterChoice, as_adapter_list
from farm.spec.checkpoint import MAX_SIDE
from farm.spec.parameter import AssetKind, Form, Parameter, parameters_of
from farm.spec.render import MAX_SEED, Mode, Rng

MAX_PROMPT_CHARACTERS = 2000
MAX_STEPS = 1000


def _whole(value: Any) -> Any:
    """JSON has one kind of number: 7.0 is the integer 7, true is not a number."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _asset(value: Any) -> Any:
    return value.removeprefix("sha256:") if isinstance(value, str) else value


Whole = Annotated[int, BeforeValidator(_whole)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
AssetId = Annotated[str, BeforeValidator(_asset), Field(pattern=r"^[0-9a-f]{64}$")]


class RenderFields(BaseModel):
    """The parameters, named as in the pipelines where they have a name there.

    ``image``, ``mask_image``, ``latents`` and ``embeds`` name assets by the sha256 of their bytes.
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, populate_by_name=True, validate_default=False
    )

    prompt: Annotated[
        str | None,
        Parameter(
            help="What to draw",
            allowed=f"1 to {MAX_PROMPT_CHARACTERS:,} characters; "
            "more than 77 tokens are cut and the result says so",
        ),
    ] = None
    negative_prompt: Annotated[
        str | None,
        Parameter(
            help="What to avoid",
            default="empty",
            elsewhere=("negative",),
            allowed=f"up to {MAX_PROMPT_CHARACTERS:,} characters",
        ),
    ] = None
    mode: Annotated[
        Mode | None,
        Parameter(
            help=", ".join(Mode),
            metavar="MODE",
            default="follows from the files given",
            allowed=", ".join(f"`{mode}`" for mode in Mode),
            pipelines=(),
        ),
    ] = None
    checkpoint: Annotated[
        str | None,
        Parameter(
            help="One of the farm's checkpoints",
            metavar="NAME",
            default="the farm's first",
            allowed="`id@revision`, the id, or its last part",
            pipelines=("from_pretrained",),
            elsewhere=("model", "sd_model_checkpoint"),
        ),
    ] = None
    height: Annotated[
        Whole | None,
        Parameter(
            help="Pixels",
            form=Form.INTEGER,
            least=8,
            most=MAX_SIDE,
            default="the image's, else the checkpoint's",
            allowed="a multiple of the checkpoint's factor; the picture has up to 4,096 tokens",
            metavar="PIXELS",
        ),
    ] = None
    width: Annotated[
        Whole | None,
        Parameter(
            help="Pixels",
            form=Form.INTEGER,
            least=8,
            most=MAX_SIDE,
            default="the image's, else the checkpoint's",
            allowed="as for `height`",
            metavar="PIXELS",
        ),
    ] = None
    num_inference_steps: Annotated[
        Whole,
        Parameter(
            help="Denoising steps",
            form=Form.INTEGER,
            least=1,
            most=MAX_STEPS,
            aliases=("steps",),
            elsewhere=("num_steps", "sampling_steps", "inference_steps"),
            metavar="N",
        ),
    ] = 12
    guidance_scale: Annotated[
        Finite | None,
        Parameter(
            help="How closely to follow the prompt",
            form=Form.NUMBER,
            least=0,
            most=100,
            default="the checkpoint's",
            allowed="above 1 it guides; amused-256 has 4, amused-512 has 10",
            aliases=("guidance",),
            elsewhere=("cfg_scale", "cfg"),
            metavar="X",
        ),
    ] = None
    temperature: Annotated[
        Finite | Annotated[tuple[Finite, Finite], BeforeValidator(_tuple)],
        Parameter(
            help="Sampling temperature, at the first and the last step",
            form=Form.NUMBERS,
            least=0,
            most=100,
            allowed="one number, or two: for the first step and the last; one goes down to 0.01",
            metavar="T[,T]",
        ),
    ] = (2.0, 0.0)
    seed: Annotated[
        Whole | None,
        Parameter(
            help="Of each prompt; with a file, its renders' seeds are derived from it",
            form=Form.INTEGER,
            least=0,
            most=MAX_SEED,
            default="random",
            pipelines=("generator",),
            metavar="N",
        ),
    ] = None
    num_images: Annotated[
        Whole,
        Parameter(
            help="Pictures of each prompt",
            form=Form.INTEGER,
            least=1,
            most=64,
            allowed="picture *i* has the seed `seed + i`",
            pipelines=("num_images_per_prompt",),
            aliases=("num_images_per_prompt",),
            elsewhere=("n", "batch_size", "n_iter"),
            letter="n",
            metavar="N",
        ),
    ] = Field(default=1, validation_alias=AliasChoices("num_images", "num_images_per_prompt"))
    image: Annotated[
        AssetId | None,
        Parameter(
            help="A picture to start from",
            form=Form.FILE,
            allowed="PNG, JPEG, WebP, GIF, BMP or TIFF",
            elsewhere=("init_image",),
            metavar="FILE",
            asset="image",
        ),
    ] = None
    mask_image: Annotated[
        AssetId | None,
        Parameter(
            help="For --image; white areas are repainted",
            form=Form.FILE,
            allowed="a picture of the image's size; white areas are repainted",
            aliases=("mask",),
            metavar="FILE",
            asset="mask",
        ),
    ] = None
    latents: Annotated[
        AssetId | None,
        Parameter(
            help="Tokens to start from, a safetensors file",
            form=Form.FILE,
            default="all masked",
            allowed="a safetensors file with token ids (rows, columns), such as one of format "
            "`tokens`",
            metavar="FILE",
            asset="latents",
        ),
    ] = None
    embeds: Annotated[
        AssetId | None,
        Parameter(
            help="Text embeddings instead of prompts, a safetensors file",
            form=Form.FILE,
            allowed="one safetensors file with tensors of those names",
            pipelines=(
                "prompt_embeds",
                "encoder_hidden_states",
                "negative_prompt_embeds",
                "negative_encoder_hidden_states",
            ),
            metavar="FILE",
            asset="embeds",
        ),
    ] = None
    strength: Annotated[
        Finite | None,
        Parameter(
            help="How much of the image is drawn again",
            form=Form.NUMBER,
            above=0,
            most=1,
            default="0.5 for img2img, 1 for inpaint",
            elsewhere=("denoising_strength",),
            metavar="X",
        ),
    ] = None
    micro_conditioning_aesthetic_score: Annotated[
        Finite,
        Parameter(
            help="Aesthetic score to aim for",
            form=Form.NUMBER,
            least=0,
            most=10,
            aliases=("aesthetic_score",),
            metavar="X",
        ),
    ] = 6.0
    micro_conditioning_crop_coord: Annotated[
        tuple[Whole, Whole],
        BeforeValidator(_tuple),
        Parameter(
            help="Crop offset to imitate, in pixels",
            form=Form.PAIR,
            least=0,
            most=8192,
            aliases=("crop",),
            metavar="Y,X",
        ),
    ] = (0, 0)
    adapters: Annotated[
        tuple[AdapterChoice, ...],
        BeforeValidator(as_adapter_list),
        Parameter(
            help="LoRA adapters, each with a scale",
            form=Form.ADAPTERS,
            default="none",
            allowed=f'up to {MAX_ADAPTERS}, each `{{"adapter": name or sha256, "scale": '
            f"{-MAX_SCALE:g} to {MAX_SCALE:g}}}`; `name:scale` as a flag or in a table",
            pipelines=("load_lora_weights",),
            aliases=("adapter",),
            metavar="NAME[:SCALE]",
        ),
    ] = ()
    adapter_scale: Annotated[
        Finite,
        Parameter(
            help="Multiplies the scales of all adapters",
            form=Form.NUMBER,
            least=-MAX_SCALE,
            most=MAX_SCALE,
            allowed="only with `adapters`",
            pipelines=('cross_attention_kwargs={"scale": s}',),
            metavar="X",
        ),
    ] = 1.0
    rng: Annotated[
        Rng,
        Parameter(
            help="farm-1, the same on every device, or torch, which draws as diffusers does",
            metavar="NAME",
            allowed="`farm-1` is the same on every device; `torch` draws as diffusers does",
            pipelines=(),
        ),
    ] = Rng.FARM_1


PARAMETERS: Mapping[str, Parameter] = parameters_of(RenderFields)
FILE_FIELDS: Mapping[str, AssetKind] = {  # those whose value is a file, and what it must hold
    name: parameter.asset for name, parameter in PARAMETERS.items() if parameter.asset is not None
}
