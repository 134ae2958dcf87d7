"""A render: what a user asks for, the frozen form the farm works on, and the limits of both."""

from farm.spec.checkpoint import CheckpointInfo
from farm.spec.explain import explain
from farm.spec.parameter import AssetKind, Form, Parameter, parameters_of
from farm.spec.parameters import MAX_PROMPT_CHARACTERS, MAX_STEPS, PARAMETERS, AssetId
from farm.spec.render import (
    MAX_SEED,
    Lane,
    Mode,
    RenderSpec,
    Rng,
    Row,
    canonical_json,
    derived_seed,
)
from farm.spec.request import RenderRequest

__all__ = [
    "MAX_PROMPT_CHARACTERS",
    "MAX_SEED",
    "MAX_STEPS",
    "PARAMETERS",
    "AssetId",
    "AssetKind",
    "CheckpointInfo",
    "Form",
    "Lane",
    "Mode",
    "Parameter",
    "RenderRequest",
    "RenderSpec",
    "Rng",
    "Row",
    "canonical_json",
    "derived_seed",
    "explain",
    "parameters_of",
]
