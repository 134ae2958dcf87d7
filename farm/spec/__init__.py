"""A render: what a user asks for, the frozen form the farm works on, and the limits of both."""

from farm.spec.adapter import AdapterChoice, check_adapter_name, parse_adapters
from farm.spec.checkpoint import CheckpointInfo
from farm.spec.explain import explain
from farm.spec.model_sizes import ModelSizes, TextEncoderSizes, TransformerSizes
from farm.spec.parameter import AssetKind, Form, Parameter, parameters_of
from farm.spec.parameters import (
    FILE_FIELDS,
    MAX_PROMPT_CHARACTERS,
    MAX_STEPS,
    PARAMETERS,
    AssetId,
)
from farm.spec.render import (
    MAX_SEED,
    AdapterScale,
    Lane,
    Mode,
    RenderSpec,
    Rng,
    Row,
    canonical_json,
    derived_seed,
    derived_seeds,
    row_seed,
)
from farm.spec.request import RenderRequest, accepts_prompts, accepts_seed

__all__ = [
    "FILE_FIELDS",
    "MAX_PROMPT_CHARACTERS",
    "MAX_SEED",
    "MAX_STEPS",
    "PARAMETERS",
    "AdapterChoice",
    "AdapterScale",
    "AssetId",
    "AssetKind",
    "CheckpointInfo",
    "Form",
    "Lane",
    "Mode",
    "ModelSizes",
    "Parameter",
    "RenderRequest",
    "RenderSpec",
    "Rng",
    "Row",
    "TextEncoderSizes",
    "TransformerSizes",
    "accepts_prompts",
    "accepts_seed",
    "canonical_json",
    "check_adapter_name",
    "derived_seed",
    "derived_seeds",
    "explain",
    "parameters_of",
    "parse_adapters",
    "row_seed",
]
