"""What a params file holds: one strict, frozen model per section and no default value.

A default stands in ``params.yaml`` and nowhere else, so what a run used can be read there.
``danceflow.config`` reads files into these models and checks the sections against each other.
"""

import json
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
)

from danceflow.columns import COLUMN_NAMES, COLUMN_PRESETS
from danceflow.errors import unknown_name

# Names that may stand in a params file. They repeat tables whose modules import torch, so that a
# file is checked without it; tests hold them equal to those tables.
METHOD_NAMES = (
    "danceopd",
    "danceopd_clean",
    "diffusionopd",
    "diffusionopd_uniform",
    "flowopd",
    "flowopd_detached",
    "offpolicy",
    "offpolicy_random_latent",
    "joint",
    "merge",
    "soft",
)
QUERY_NAMES = ("low", "median", "high", "uniform", "stratified", "curriculum", "logit_normal")
OBJECTIVE_NAMES = (
    "mse",
    "snr",
    "kl",
    "dmd-ema",
    "consistency",
    "mix",
    "diffusionopd",
    "diffusionopd_uniform",
    "flowopd",
    "flowopd_detached",
)
REDUCTION_NAMES = ("mean", "sum", "weighted")
DYNAMICS_NAMES = ("ode", "sde")
ROUTING_NAMES = ("hard", "soft")
COUPLING_NAMES = ("independent", "antithetic", "stratified")
FAMILY_NAMES = ("flux2", "qwen_image", "sd3", "zimage")
SOURCE_NAMES = ("scenes", "table", "folder", "dataset")
SCRATCH, BROUGHT = "scratch", "brought"
"""What a teacher's ``init`` can say beside another teacher's name."""
SCENE_BUCKETS = ("t2i", "local_edit", "global_edit", "realism")


def _one_of(kind: str, known: tuple[str, ...]) -> AfterValidator:
    def check(name: str) -> str:
        if name not in known:
            raise ValueError(unknown_name(kind, name, known))
        return name

    return AfterValidator(check)


def _address(value: object) -> object:
    """Check an endpoint's address; what it is may hold a password, so it is never told."""
    form = "should be http:// or https://, host and path, up to and with /v1"
    try:
        parts = urlsplit(value) if isinstance(value, str) else None
        is_complete = parts is not None and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is none
        raise ValueError(form) from None
    if parts is None or not is_complete or parts.scheme not in ("http", "https"):
        raise ValueError(form)
    if "@" in parts.netloc:
        raise ValueError(
            "holds a user or password, which git, MLflow and the report would show; put a key into "
            "an environment variable and name it as key_variable"
        )
    has_gap = any(letter.isspace() or not letter.isprintable() for letter in str(value))
    if parts.query or parts.fragment or has_gap:
        raise ValueError(form + ", without ?, # or spaces")
    return value


def _variable(value: object) -> object:
    """Check the name of an environment variable; what is none may be a key, so it is not told."""
    if value is None or (isinstance(value, str) and re.fullmatch("[A-Z_][A-Z0-9_]*", value)):
        return value
    raise ValueError(
        "should be the name of an environment variable in capitals, such as JUDGE_KEY, or null; "
        "the key itself belongs into that variable"
    )


def _num_queries(value: object) -> object:
    is_count = isinstance(value, int) and not isinstance(value, bool) and value >= 1
    if value is None or value == "all" or is_count:
        return value
    raise ValueError(f"should be a number from 1, 'all' or null, found {json.dumps(value)}")


def _columns(value: object) -> object:
    if isinstance(value, str):
        if value not in COLUMN_PRESETS:
            raise ValueError(unknown_name("preset of columns", value, COLUMN_PRESETS))
        return COLUMN_PRESETS[value]
    if not isinstance(value, dict):
        raise ValueError(f"should be a preset or a mapping, found {json.dumps(value)}")
    for name, column in value.items():
        if name not in COLUMN_NAMES:
            raise ValueError(unknown_name("content of a column", name, COLUMN_NAMES))
        if not isinstance(column, str) or not column:
            raise ValueError(f"{name}: should name a column, found {json.dumps(column)}")
    for name in ("prompt", "target"):
        if name not in value:
            raise ValueError(f"{name}: is missing; say which column holds it")
    return value


def _not_empty(value: Mapping[str, Any]) -> Mapping[str, Any]:
    if not value:
        raise ValueError("needs at least one entry")
    return value


# A name that becomes part of a path and of a stage's name.
Key = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]
Count = Annotated[int, Field(ge=0)]
PositiveCount = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Method = Annotated[str, _one_of("method", METHOD_NAMES)]
Query = Annotated[str, _one_of("query", QUERY_NAMES)]
Objective = Annotated[str, _one_of("objective", OBJECTIVE_NAMES)]
Reduction = Annotated[str, _one_of("reduction", REDUCTION_NAMES)]
Dynamics = Annotated[str, _one_of("dynamics", DYNAMICS_NAMES)]
Routing = Annotated[str, _one_of("routing", ROUTING_NAMES)]
Coupling = Annotated[str, _one_of("coupling", COUPLING_NAMES)]
NumQueries = Annotated[int | Literal["all"] | None, PlainValidator(_num_queries)]
Family = Annotated[str, _one_of("family", FAMILY_NAMES)]
Source = Annotated[str, _one_of("data source", SOURCE_NAMES)]
Columns = Annotated[Mapping[str, str], PlainValidator(_columns)]
Ratio = Annotated[str, Field(pattern=r"^[1-9][0-9]?:[1-9][0-9]?$")]
Optimizer = Literal["adamw", "muon"]


class Section(BaseModel):
    """A part of a params file: unknown keys, other types and later changes are errors."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", allow_inf_nan=False)


class RunParams(Section):
    """What decides every number beside the recipe itself."""

    seed: Count
    device: Annotated[str, Field(pattern=r"^(cpu|mps|cuda(:\d+)?)$")]
    dtype: Literal["float32", "bfloat16", "float16"]
    num_threads: PositiveCount
    # Of networks of their own: teachers, and student and start while they are scored.
    offload: Literal["none", "teachers", "blocks"]
    compile: bool  # the repeated blocks of every network


class TransformerParams(Section):
    """The size of the velocity network; sizes are in latent pixels."""

    num_layers: PositiveCount
    num_heads: PositiveCount
    head_dim: PositiveCount
    patch_size: PositiveCount
    sample_size: PositiveCount
    in_channels: PositiveCount  # state, source image and source mask, one after the other
    out_channels: PositiveCount


class TextEncoderParams(Section):
    """The size of the prompt encoder that a family trained from scratch brings along."""

    num_layers: Count
    num_heads: PositiveCount
    width: PositiveCount
    max_length: PositiveCount  # tokens
    num_updates: PositiveCount
    batch_size: PositiveCount
    learning_rate: Positive


class FamilyParams(Section):
    """The model family, its networks and what their output means."""

    name: Family
    prediction: Literal["clean", "velocity"]
    sigma_min: Annotated[float, Field(gt=0, lt=1)]
    shift: Positive
    transformer: TransformerParams
    text_encoder: TextEncoderParams


class BucketParams(Section):
    """How many samples of one bucket go into each split."""

    num_train: PositiveCount
    num_validation: PositiveCount
    num_test: PositiveCount


class InputParams(Section):
    """What a table, an image folder or a ``datasets`` data set holds, and what is made of it."""

    path: Annotated[str, Field(min_length=1)]  # or the name of a data set
    config: str | None  # of a data set
    revision: str | None  # of a data set that is known by name
    subset: str | None  # split of a data set to read; null: train
    columns: Columns  # a preset, or what each column holds
    tasks: Mapping[str, tuple[str, ...]]  # by bucket, phrases that a task holds as whole words
    min_score: float | None  # rows with a lower score are left out
    fit: Literal["crop", "pad"]
    aspect_ratios: Annotated[tuple[Ratio, ...], Field(min_length=1)]  # width:height
    size_multiple: PositiveCount  # of the sides of images that are not square
    min_side: PositiveCount  # pixels; images with a smaller side are bad
    paper: Annotated[str, Field(pattern=r"^#[0-9a-f]{6}$")]  # behind transparent pixels and pads
    max_bad: Fraction  # share of the rows; more stop the stage
    num_shards: PositiveCount  # processes, each with its part of the rows


class DataParams(Section):
    """Where samples come from and how they are split.

    The sizes of the buckets are exact for scenes, and what is taken at most of other sources.
    """

    source: Source
    seed: Count
    image_size: PositiveCount
    input: InputParams | None  # of every source but scenes
    buckets: Annotated[Mapping[Key, BucketParams], AfterValidator(_not_empty)]


class CapabilityParams(Section):
    """One thing the student must learn: its data, its teacher and the teacher's guidance."""

    bucket: str
    teacher: str
    guidance: NonNegative
    weight: NonNegative  # share of the training; 0: scored, never trained
    needs_source: bool


class TeacherParams(Section):
    """How one teacher is trained; of one that was brought along only its name counts."""

    init: str  # "scratch", "brought" (never trained here) or the teacher it starts from
    adapter_rank: PositiveCount | None  # of a LoRA adapter on init; null: weights of its own
    bucket: str
    category_weights: Mapping[str, PositiveCount]  # share of a category; 1 where it is not named
    num_samples: PositiveCount
    num_updates: PositiveCount
    batch_size: PositiveCount
    optimizer: Optimizer
    learning_rate: Positive
    warmup: Count
    weight_decay: NonNegative
    clip_norm: Positive
    ema_decay: Annotated[float, Field(ge=0, lt=1)]
    caption_dropout: Fraction
    sigma_shift: Positive  # of the training noise
    sigma_power: NonNegative  # of the loss weight sigma^p; 2 asks for the clean image


class CacheParams(Section):
    """What is computed once per capability before training."""

    num_samples: PositiveCount
    num_steps: PositiveCount
    batch_size: PositiveCount


class DistillParams(Section):
    """The training of the student; null means "as the method says"."""

    seed: Count  # of routes, rows, noise and queries; caches and validation have run.seed
    method: Method
    query: Query | None
    objective: Objective | None
    num_queries: NumQueries
    reduction: Reduction | None
    dynamics: Dynamics | None
    eta: Positive | None
    routing: Routing | None
    group_size: PositiveCount | None
    coupling: Coupling | None
    warm_start: Count | None
    updates_per_rollout: PositiveCount | None
    loss_normalisation: Annotated[float, Field(ge=0, lt=1)] | None
    num_steps: PositiveCount
    student: Literal["full", "lora"]
    lora_rank: PositiveCount
    activation_checkpointing: bool
    init: str  # "merge" or a teacher; some methods fix it
    merge_weights: Mapping[str, NonNegative] | None  # of any teachers, in a merge
    capabilities_per_update: Literal["one", "balanced", "all"]
    num_updates: PositiveCount  # at most
    max_field_evaluations: PositiveCount | None  # ends the training earlier
    batch_size: PositiveCount
    optimizer: Optimizer
    learning_rate: Positive
    warmup: Count
    schedule: Literal["cosine", "constant"]  # of the learning rate after the warm-up
    weight_decay: NonNegative
    clip_norm: Positive
    ema_decay: Annotated[float, Field(ge=0, lt=1)]
    checkpoint_every: PositiveCount
    log_every: PositiveCount
    evaluate_every: PositiveCount
    evaluate_samples: PositiveCount  # per category, for the curves while training
    grid_every: PositiveCount


class WeightsParams(Section):
    """Networks on this machine that further metrics need; null leaves the metric out."""

    clip: str | None  # folder of a transformers CLIP model and its processor
    lpips: str | None  # AlexNet's state dict, as torchvision names its layers
    inception: str | None  # TorchScript file: uint8 images to features


class JudgeParams(Section):
    """A vision model that scores pictures, behind an OpenAI-compatible endpoint."""

    url: Annotated[str, BeforeValidator(_address)]  # up to and with /v1
    model: Annotated[str, Field(min_length=1)]
    # environment variable that holds the endpoint's key
    key_variable: Annotated[str | None, BeforeValidator(_variable)]
    offline: bool  # only export pictures and questions, and use answers that are there
    is_score: bool  # whether retention and gate go by its scores
    num_samples: PositiveCount  # standard rows per category that are judged
    num_retries: Count
    max_unusable: Fraction  # of the judged rows, without a usable answer
    timeout_s: Positive
    price_in: NonNegative  # per million tokens
    price_out: NonNegative


class EvaluateParams(Section):
    """How every field is scored; all fields see the same prompts and the same noise."""

    num_samples: PositiveCount  # per category
    num_steps: PositiveCount  # Euler steps of every sample, and of the served student
    guidance: NonNegative  # of the student, on top of what its teachers had; 1: a single pass
    batch_size: PositiveCount
    seeds: Annotated[tuple[Count, ...], Field(min_length=1)]
    num_bootstrap: PositiveCount
    weights: WeightsParams
    judge: JudgeParams | None


class GateParams(Section):
    """What a student must reach before it may be promoted."""

    min_retention: Mapping[str, NonNegative]  # per capability, share of its own teacher's score
    max_regression: NonNegative  # share of the champion's score that may be lost
    auto_promote: bool


class TrackingParams(Section):
    """Where runs are recorded; part of no stage's key."""

    enabled: bool
    uri: str | None
    experiment: Annotated[str, Field(min_length=1)]
    registered_model: Annotated[str, Field(min_length=1)]


class Params(Section):
    """A whole params file."""

    run: RunParams
    family: FamilyParams
    data: DataParams
    capabilities: Annotated[Mapping[Key, CapabilityParams], AfterValidator(_not_empty)]
    teachers: Annotated[Mapping[Key, TeacherParams], AfterValidator(_not_empty)]
    cache: CacheParams
    distill: DistillParams
    evaluate: EvaluateParams
    gate: GateParams
    tracking: TrackingParams

    def select(self, names: tuple[str, ...]) -> dict[str, Any]:
        """Return the values at some dotted names, ready to be written as JSON.

        Args:
            names: Such as ``("run", "distill.num_steps")``.

        Raises:
            KeyError: A name is in no section.
        """
        whole = self.model_dump(mode="json")
        return {name: _at(whole, name) for name in names}


def _at(whole: dict[str, Any], name: str) -> Any:
    value: Any = whole
    for part in name.split("."):
        value = value[part]
    return value
