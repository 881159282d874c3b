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
    BlockName,
    BlockSlug,
    Columns,
    Count,
    Fraction,
    Key,
    NonNegative,
    NotEmpty,
    NumQueries,
    NumSteps,
    OneOf,
    Positive,
    PositiveCount,
    Ratio,
    Variable,
    Webhook,
)

Optimizer = Literal["adamw", "muon"]


class Section(BaseModel):
    """A part of a params file: unknown keys, other types and later changes are errors.

    What stands below a field is its meaning, which `danceflow explain` and the schema tell.
    """

    model_config = ConfigDict(
        strict=True, frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True
    )


class RunParams(Section):
    """What decides every number beside the recipe itself."""

    seed: Count
    """Seed of data draws, caches, validation noise and the order of everything that is drawn."""
    device: Annotated[str, Field(pattern=r"^(cpu|mps|cuda(:\d+)?)$")]
    """Where networks compute: cpu, mps, cuda or cuda:<index>."""
    dtype: Literal["float32", "bfloat16", "float16"]
    """Number format of the networks; integration and loss are always float32."""
    base: Literal["float", "int8", "nf4"]
    """How the frozen network below the student's adapter is held in training: float (in dtype), or
    with fewer bits, int8 or nf4."""
    num_threads: PositiveCount
    """Threads of one process on the CPU."""
    offload: Literal["none", "teachers", "blocks"]
    """What networks of their own (teachers; student and start while they are scored) do while they
    are not asked: none stays on the device, teachers waits in main memory, blocks moves block by
    block."""
    compile: bool
    """Whether the repeated blocks of every network are compiled."""
    num_processes: PositiveCount
    """Processes that compute cache, teachers, distill and evaluate together, on all machines; on
    cuda each has a GPU of its own. Part of no stage's key: it decides no more than rounding."""


RUN_KEYS = tuple(f"run.{name}" for name in RunParams.model_fields if name != "num_processes")
"""What of the section ``run`` is in the keys of stages and of work: who computes is not."""


class TransformerParams(Section):
    """The size of the velocity network; sizes are in latent pixels."""

    num_layers: PositiveCount
    """Transformer blocks."""
    num_heads: PositiveCount
    """Attention heads of a block."""
    head_dim: PositiveCount
    """Width of an attention head."""
    patch_size: PositiveCount
    """Latent pixels along the side of a token."""
    sample_size: PositiveCount
    """Latent pixels along the side of a picture."""
    in_channels: PositiveCount
    """Channels that go in: state, source image and source mask, one after the other."""
    out_channels: PositiveCount
    """Channels that come out."""


class TextEncoderParams(Section):
    """The size of the prompt encoder that a family trained from scratch brings along."""

    num_layers: Count
    """Transformer blocks; 0 leaves embedded words alone."""
    num_heads: PositiveCount
    """Attention heads of a block."""
    width: PositiveCount
    """Width of a token's features."""
    max_length: PositiveCount
    """Tokens of a prompt; longer prompts are cut, and the stage cache says so."""
    num_updates: PositiveCount
    """Updates of its training, before any teacher is trained."""
    batch_size: PositiveCount
    """Prompts per update."""
    learning_rate: Positive
    """Of its training."""


class FamilyParams(Section):
    """The model family, its networks and what their output means."""

    name: Annotated[str, OneOf("family", FAMILY_NAMES)]
    """The model family: how prompts, sources and latents reach the network."""
    prediction: Literal["clean", "velocity"]
    """What the network returns: the clean image, or the velocity."""
    sigma_min: Annotated[float, Field(gt=0, lt=1)]
    """A clean prediction is divided by at least this sigma."""
    shift: Positive
    """Shift of the sigma grid; 1 is uniform."""
    transformer: TransformerParams
    """Size of the velocity network that is trained from scratch."""
    text_encoder: TextEncoderParams
    """The prompt encoder that is trained from scratch."""


class BucketParams(Section):
    """How many samples of one bucket go into each split."""

    num_train: PositiveCount
    """Rows of the train split."""
    num_validation: PositiveCount
    """Rows of the validation split, which scores a training while it runs."""
    num_test: PositiveCount
    """Rows of the test split, which decides."""


class InputParams(Section):
    """What a table, an image folder or a ``datasets`` data set holds, and what is made of it."""

    path: Annotated[str, Field(min_length=1)]
    """A file or folder below data/raw, or the name of a data set."""
    config: str | None
    """Configuration of a data set."""
    revision: str | None
    """Revision of a data set that is known by name."""
    subset: str | None
    """Split of a data set that is read; null: train."""
    columns: Columns
    """A preset, or which column holds what."""
    tasks: Mapping[str, tuple[str, ...]]
    """By bucket, the phrases that a task holds as whole words."""
    min_score: float | None
    """Rows with a lower score are left out."""
    fit: Literal["crop", "pad"]
    """How a picture of another aspect is fitted: cropped, or padded with paper."""
    aspect_ratios: Annotated[tuple[Ratio, ...], Field(min_length=1)]
    """Width to height of the sizes that pictures are sorted into."""
    size_multiple: PositiveCount
    """The sides of pictures that are not square are multiples of it, in pixels."""
    min_side: PositiveCount
    """Pictures with a smaller side are bad, in pixels."""
    paper: Annotated[str, Field(pattern=r"^#[0-9a-f]{6}$")]
    """Colour behind transparent pixels and pads."""
    max_bad: Fraction
    """Share of the rows that may be bad; more stop the stage."""
    num_shards: PositiveCount
    """Processes that read, each its part of the rows."""


class DataParams(Section):
    """Where samples come from and how they are split.

    The sizes of the buckets are exact for a world that is drawn, and what is taken at most of rows
    that are read.
    """

    world: Annotated[str, OneOf("world", tuple(WORLD_BUCKETS))]
    """What rows are and what is right: scenes and digits are drawn, rows are read."""
    source: Annotated[str, OneOf("data source", SOURCE_NAMES)] | None
    """What the rows of a world that is read lie in."""
    seed: Count
    """Seed of what is drawn, and of the splits."""
    image_size: PositiveCount
    """Side of a square picture in pixels."""
    input: InputParams | None
    """What is read, and how; of a world whose rows are read."""
    buckets: Annotated[Mapping[Key, BucketParams], NotEmpty]
    """How many rows of each bucket go into each split: exact where they are drawn, at most where
    they are read."""


class CapabilityParams(Section):
    """One thing the student must learn: its data, its teacher and the teacher's guidance."""

    bucket: str
    """Its rows."""
    teacher: str
    """Its own teacher, which retention is measured against."""
    guidance: NonNegative
    """Scale of the teacher's guidance, which the student takes over; 1 is a single pass."""
    weight: NonNegative
    """Its share of the training; 0: it is scored and never trained."""
    needs_source: bool
    """Whether a row has a picture to start from."""


class TeacherParams(Section):
    """How one teacher is trained; of one that was brought along only its name counts."""

    init: str
    """What it starts from: scratch, another teacher, or brought (never trained here)."""
    adapter_rank: PositiveCount | None
    """Rank of a LoRA adapter on init; null: weights of its own."""
    bucket: str
    """The rows that it is trained on."""
    category_weights: Mapping[str, PositiveCount]
    """Share of a category in the training; 1 where it is not named."""
    num_samples: PositiveCount
    """Rows that are drawn for its training."""
    num_updates: PositiveCount
    """Updates of its training."""
    batch_size: PositiveCount
    """Rows per update."""
    optimizer: Optimizer
    """What turns gradients into updates."""
    learning_rate: Positive
    """Highest learning rate."""
    warmup: Count
    """Updates until it is reached."""
    weight_decay: NonNegative
    """Of the optimizer."""
    clip_norm: Positive
    """Norm that gradients are cut to."""
    ema_decay: Annotated[float, Field(ge=0, lt=1)]
    """Decay of the average of weights that is kept."""
    caption_dropout: Fraction
    """Share of rows that are shown without a prompt, for guidance."""
    sigma_shift: Positive
    """Shift of the training noise, a shifted logit-normal."""
    sigma_power: NonNegative
    """The loss weight is sigma to this power; 2 asks for the clean image."""


class CacheParams(Section):
    """What is computed once per capability before training."""

    num_samples: PositiveCount
    """Rows of a capability that get a sample of their teacher."""
    num_steps: PositiveCount
    """Euler steps of such a sample."""
    batch_size: PositiveCount
    """Rows that are computed together."""
    dtype: Literal["float32", "bfloat16"]
    """Number format of what is stored; it is read as float32."""


class MethodParts(Section):
    """The parts of a method that can be replaced one by one; null means "as the method says"."""

    query: Annotated[str, OneOf("query", QUERY_NAMES)] | None
    """Which states of the rollout are asked about."""
    objective: Annotated[str, OneOf("objective", OBJECTIVE_NAMES)] | None
    """What is regressed, and how it is weighted."""
    num_queries: NumQueries
    """States per sample: a number up to num_steps, or all."""
    reduction: Annotated[str, OneOf("reduction", REDUCTION_NAMES)] | None
    """How the losses of a sample's states combine."""
    dynamics: Annotated[str, OneOf("dynamics", DYNAMICS_NAMES)] | None
    """Of the rollout: ode, or sde with noise."""
    eta: Positive | None
    """Noise of the sde."""
    routing: Annotated[str, OneOf("routing", ROUTING_NAMES)] | None
    """Who answers a sample: its capability's own teacher (hard), or the mean of all (soft)."""
    group_size: PositiveCount | None
    """Samples that share a condition: noise draws per prompt."""
    coupling: Annotated[str, OneOf("coupling", COUPLING_NAMES)] | None
    """How the queries of a batch are coupled."""
    warm_start: Count | None
    """Index of the rollout where the student takes over from a noised teacher sample."""
    updates_per_rollout: PositiveCount | None
    """Updates among which the states of one rollout are shared out; 1: each has its own."""

    @property
    def replaced(self) -> dict[str, Any]:
        """The parts that are given, by name, as ``danceflow.method.resolve_method`` takes them."""
        parts = {name: getattr(self, name) for name in MethodParts.model_fields}
        return {name: part for name, part in parts.items() if part is not None}


class DistillParams(MethodParts):
    """The training of the student: its method, with parts replaced, and everything around it."""

    seed: Count
    """Seed of routes, rows, noise and queries of the training; caches and validation have
    run.seed."""
    method: Annotated[str, OneOf("method", METHOD_NAMES)]
    """The way to distil; its parts below can be replaced one by one."""
    loss_normalisation: Annotated[float, Field(ge=0, lt=1)] | None
    """Decay of each capability's mean loss, which divides its loss; null: none."""
    num_steps: PositiveCount
    """Steps of the student's rollout."""
    shift: Annotated[float, Field(gt=0)] | None
    """Shift of the student's sigma grid, on which it is rolled out and answers, and teachers that
    are compared with it; cached teacher samples have their own. null: the teachers'."""
    substeps: Mapping[str, PositiveCount]
    """By capability, the steps in which its teacher goes along one step of the rollout; the student
    learns their mean velocity. 1, and where none is named: its velocity at the state."""
    substeps_from: Annotated[float, Field(ge=0, lt=1)]
    """Share of the training after which they are taken; before it every teacher is asked at the
    state alone."""
    noised: Mapping[str, Fraction]
    """By capability, the share of its samples whose states are noised pictures of the data, also
    between the sigmas of the rollout (at them alone while the teacher takes substeps); the others'
    are the student's own. 0 where none is named. A method without a rollout has noised states
    alone, or none."""
    student: Literal["full", "lora"]
    """Whether all weights are trained, or a LoRA adapter."""
    lora_rank: PositiveCount
    """Rank of the student's adapter."""
    activation_checkpointing: bool
    """Whether activations are computed again in the backward pass: less memory, a second forward
    pass."""
    init: str
    """What the student starts from: merge, or a teacher; some methods fix it."""
    merge_weights: Mapping[str, NonNegative] | None
    """Weights of any teachers in a merge; null: every trained capability's teacher alike."""
    capabilities_per_update: Literal["one", "balanced", "all"]
    """What an update trains: one capability (drawn), balanced (evenly in turn) or all."""
    num_updates: PositiveCount
    """Updates at most."""
    max_field_evaluations: PositiveCount | None
    """Field evaluations that end the training earlier; null: none."""
    batch_size: PositiveCount
    """Samples per update."""
    optimizer: Optimizer
    """What turns gradients into updates."""
    learning_rate: Positive
    """Highest learning rate."""
    warmup: Count
    """Updates until it is reached."""
    schedule: Literal["cosine", "constant"]
    """Of the learning rate after the warm-up: cosine falls to 2 %."""
    weight_decay: NonNegative
    """Of the optimizer."""
    clip_norm: Positive
    """Norm that gradients are cut to."""
    ema_decay: Annotated[float, Field(ge=0, lt=1)]
    """Decay of the average of weights that becomes the student."""
    checkpoint_every: PositiveCount
    """Updates between two checkpoints."""
    log_every: PositiveCount
    """Updates between two points of the curves."""
    evaluate_every: PositiveCount
    """Updates between two scores on the validation split."""
    evaluate_samples: PositiveCount
    """Rows per category of such a score."""
    grid_every: PositiveCount
    """Updates between two sheets of pictures."""


class WeightsParams(Section):
    """Networks on this machine that further metrics need; null leaves the metric out."""

    clip: str | None
    """Folder of a transformers CLIP model and its processor, for CLIPScore."""
    lpips: str | None
    """AlexNet's state dict, as torchvision names its layers, for LPIPS."""
    inception: str | None
    """TorchScript file from uint8 images to features, for FID and KID on them."""


class JudgeParams(Section):
    """A vision model that scores pictures, behind an OpenAI-compatible endpoint."""

    url: Address
    """The endpoint's address, up to and with /v1."""
    model: Annotated[str, Field(min_length=1)]
    """The model's name there."""
    key_variable: Variable
    """Environment variable that holds the endpoint's key."""
    offline: bool
    """Whether pictures and questions are only exported, and answers that are there are used."""
    is_score: bool
    """Whether retention and gate go by its scores."""
    num_samples: PositiveCount
    """Standard rows per category that are judged."""
    num_retries: Count
    """Further tries of a question that failed."""
    max_unusable: Fraction
    """Share of the judged rows that may lack a usable answer."""
    timeout_s: Positive
    """Seconds that an answer may take."""
    price_in: NonNegative
    """Price of a million tokens that go in."""
    price_out: NonNegative
    """Price of a million tokens that come out."""


class EvaluateParams(Section):
    """How every field is scored; all fields see the same prompts and the same noise."""

    num_samples: PositiveCount
    """Rows per category that are scored."""
    num_steps: NumSteps
    """Euler steps of the student, scored and served: a number, or one for every capability. An edit
    that is served takes the most of those with a source: nobody says which edit it is."""
    num_teacher_steps: PositiveCount | None
    """Euler steps of the teachers that it is held against; null: as many as the student."""
    further_steps: tuple[PositiveCount, ...]
    """Numbers of Euler steps in which student and own teacher are scored, too: on the standard rows
    with the first seed. []: none, as where a judge, who is paid, gives the score."""
    guidance: NonNegative
    """Of the student while it is scored, on top of what its teachers had; 1: a single pass."""
    batch_size: PositiveCount
    """Rows that are computed together."""
    seeds: Annotated[tuple[Count, ...], Field(min_length=1)]
    """Seeds of the noise; student and own teacher are asked with all, others with the first."""
    num_bootstrap: PositiveCount
    """Bootstrap replicates of an interval."""
    weights: WeightsParams
    """Networks on this machine that further metrics need; null leaves the metric out."""
    judge: JudgeParams | None
    """A vision model that scores; null: none."""

    def steps(self, capability: str) -> int:
        """Return the student's steps for a capability."""
        steps = self.num_steps
        return steps if isinstance(steps, int) else steps[capability]

    def teacher_steps(self, capability: str) -> int:
        """Return the steps of the teachers that are asked for the same."""
        return self.num_teacher_steps or self.steps(capability)


class GateParams(Section):
    """What a student must reach before it may be promoted."""

    confidence: Annotated[float, Field(gt=0.5, lt=1)]
    """One-sided confidence of every condition; what is not known so surely never promotes."""
    min_score: Mapping[str, NonNegative]
    """By capability, the least score, whatever teacher and champion score; {}: none."""
    min_retention: Mapping[str, NonNegative]
    """By capability, the least share of its own teacher's score."""
    max_regression: NonNegative
    """Share of the champion's score that may be lost."""
    auto_promote: bool
    """Whether a student that passes becomes champion at once."""


class WebhookParams(Section):
    """An address that is told of what becomes of a student, and how it knows who tells it."""

    url: Webhook
    """Address that news are posted to."""
    secret_variable: Variable
    """Environment variable that holds the secret."""
    secret_block: BlockName | None
    """Name of Prefect's Secret block that holds the secret."""
    auth: Literal["none", "signature", "bearer", "both"]
    """What proves the sender: an HMAC signature, a bearer token, both, or nothing."""


class NotifyParams(Section):
    """Who is told of registrations, promotions, rollbacks and refusals."""

    blocks: tuple[BlockSlug, ...]
    """Prefect's notification blocks, each as type/name."""
    webhooks: tuple[WebhookParams, ...]
    """Addresses that are told as well."""


class TrackingParams(Section):
    """Where runs are recorded; part of no stage's key."""

    enabled: bool
    """Whether runs are recorded, and the student is registered."""
    uri: str | None
    """The tracking store; null: mlflow.db in the main checkout. MLFLOW_TRACKING_URI goes first."""
    experiment: Annotated[str, Field(min_length=1)]
    """The MLflow experiment's name."""
    registered_model: Annotated[str, Field(min_length=1)]
    """The student's name in the model registry."""


class WatchParams(Section):
    """How far served requests may be from the training; part of no stage's key."""

    min_requests: PositiveCount
    """Served pictures of a kind (generated, edited) that a comparison needs."""
    alpha: Annotated[float, Field(gt=0, lt=0.5)]
    """How often a difference may be told where there is none."""
    max_unknown_words: Fraction
    """Share of served prompts with a word that no training prompt has."""
    max_length_shift: Fraction
    """Kolmogorov-Smirnov distance between the lengths of served and training prompts."""
    max_embedding_shift: Annotated[float, Field(ge=0.5, le=1)]
    """Area under the curve of a classifier that tells served from training prompts; 0.5: no better
    than chance."""
    max_score_loss: Fraction
    """Share of the evaluation's score that served pictures may lack, where pictures are kept."""
    on_drift: Literal["report", "ask", "retrain"]
    """What follows when a limit is crossed: a report alone, a question to a person, or a run."""


class Params(Section):
    """A whole params file."""

    run: RunParams
    """What decides every number beside the recipe itself."""
    family: FamilyParams
    """The model family and its networks."""
    data: DataParams
    """Where rows come from, and how they are split."""
    capabilities: Annotated[Mapping[Key, CapabilityParams], NotEmpty]
    """What the student must learn, by name."""
    teachers: Annotated[Mapping[Key, TeacherParams], NotEmpty]
    """The teachers, by name."""
    cache: CacheParams
    """What is computed once per capability before the training."""
    distill: DistillParams
    """The training of the student."""
    evaluate: EvaluateParams
    """How every field is scored."""
    gate: GateParams
    """What a student must reach before it may be promoted."""
    notify: NotifyParams
    """Who is told what becomes of a student."""
    tracking: TrackingParams
    """Where runs are recorded."""
    watch: WatchParams
    """How far served requests may be from the training."""

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
