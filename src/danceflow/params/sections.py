"""What a params file holds: one strict, frozen model per section and no default value.

A default stands in ``params.yaml`` and nowhere else, so what a run used can be read there.
``danceflow.params.read`` reads files into these models, ``danceflow.params.rules`` ties them
together.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from danceflow.params.names import (
    COUPLING_NAMES,
    DYNAMICS_NAMES,
    FAMILY_NAMES,
    METHOD_NAMES,
    OBJECTIVE_NAMES,
    QUERY_NAMES,
    REDUCTION_NAMES,
    ROUTING_NAMES,
    SOURCE_NAMES,
    WORLD_BUCKETS,
)
from danceflow.params.values import (
    Address,
    Columns,
    Count,
    Fraction,
    Key,
    NonNegative,
    NotEmpty,
    NumQueries,
    Positive,
    PositiveCount,
    Ratio,
    Variable,
    one_of,
)

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

    name: Annotated[str, one_of("family", FAMILY_NAMES)]
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

    The sizes of the buckets are exact for a world that is drawn, and what is taken at most of rows
    that are read.
    """

    world: Annotated[str, one_of("world", tuple(WORLD_BUCKETS))]
    # of a world whose rows are read
    source: Annotated[str, one_of("data source", SOURCE_NAMES)] | None
    seed: Count
    image_size: PositiveCount
    input: InputParams | None  # of a world whose rows are read
    buckets: Annotated[Mapping[Key, BucketParams], NotEmpty]


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
    dtype: Literal["float32", "bfloat16"]  # of what is stored; it is read as float32


class MethodParts(Section):
    """The parts of a method that can be replaced one by one; null means "as the method says"."""

    query: Annotated[str, one_of("query", QUERY_NAMES)] | None
    objective: Annotated[str, one_of("objective", OBJECTIVE_NAMES)] | None
    num_queries: NumQueries  # or null
    reduction: Annotated[str, one_of("reduction", REDUCTION_NAMES)] | None
    dynamics: Annotated[str, one_of("dynamics", DYNAMICS_NAMES)] | None
    eta: Positive | None
    routing: Annotated[str, one_of("routing", ROUTING_NAMES)] | None
    group_size: PositiveCount | None
    coupling: Annotated[str, one_of("coupling", COUPLING_NAMES)] | None
    warm_start: Count | None
    updates_per_rollout: PositiveCount | None

    @property
    def replaced(self) -> dict[str, Any]:
        """The parts that are given, by name, as ``danceflow.method.resolve_method`` takes them."""
        parts = {name: getattr(self, name) for name in MethodParts.model_fields}
        return {name: part for name, part in parts.items() if part is not None}


class DistillParams(MethodParts):
    """The training of the student: its method, with parts replaced, and everything around it."""

    seed: Count  # of routes, rows, noise and queries; caches and validation have run.seed
    method: Annotated[str, one_of("method", METHOD_NAMES)]
    loss_normalisation: Annotated[float, Field(ge=0, lt=1)] | None  # null: none
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

    url: Address  # up to and with /v1
    model: Annotated[str, Field(min_length=1)]
    key_variable: Variable  # it holds the endpoint's key
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
    capabilities: Annotated[Mapping[Key, CapabilityParams], NotEmpty]
    teachers: Annotated[Mapping[Key, TeacherParams], NotEmpty]
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
