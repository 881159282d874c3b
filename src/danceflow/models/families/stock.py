"""What the families of stock diffusers pipelines have in common.

Their networks predict eps - x, take source images as further tokens and compute on latents of any
size. A family adds its prompts, its layout of tokens and its signs.
"""

import copy
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from danceflow.errors import WeightsError
from danceflow.fields import (
    SOURCES,
    Condition,
    GuidedField,
    Sources,
    VelocityField,
    as_sources,
    pad_length,
    rows_with_source,
    with_source,
)
from danceflow.models.adapters.comfy import Original
from danceflow.models.adapters.lora import save_adapter
from danceflow.models.families.pipeline_folder import (
    FROZEN_FILE,
    PIPELINE_FILE,
    count_frozen,
    linear_scheduler_grid,
    read_pipeline_class,
    read_scheduler,
    read_transformer_config,
    read_vae_factor,
    shifted_scheduler,
)
from danceflow.models.frozen.codec import Codec, vae_factor
from danceflow.models.frozen.reading import Reading
from danceflow.models.layout import Layout, Sketch, Transformer
from danceflow.models.weights import load_state, read_json, read_state, save_half

DEFAULT_SIZE = 1024
"""Side in pixels of the images that stock pipelines make when they are not told."""


@dataclass(frozen=True)
class StockSettings:
    """What is known of a pipeline beside its weights.

    Attributes:
        pipeline: name of its class.
        image_size: height and width in pixels.
        scheduler: config of its scheduler.
        transformer: arguments of its transformer.
    """

    pipeline: str
    image_size: tuple[int, int]
    scheduler: dict[str, Any]
    transformer: dict[str, Any]


class StockFamily(ABC):
    """Frozen parts of a stock pipeline; see ``family.ModelFamily`` for the contract."""

    name: ClassVar[str]
    pipelines: ClassVar[tuple[str, ...]]
    """Names of the pipeline classes whose folders the family opens."""
    edit_pipelines: ClassVar[tuple[str, ...]]
    """Those of them that take a source."""
    layout: ClassVar[Layout]
    most_sources: ClassVar[int] = 1
    """How many pictures an edit may have."""
    prompt_length: ClassVar[int | None] = None
    """Tokens of every prompt; ``None``: prompts keep their own length."""
    adapter_targets: tuple[str, ...]

    def __init__(self, settings: StockSettings, codec: Codec) -> None:
        """Keep the settings and the codec; a family's own ``open`` adds its encoders."""
        self.settings = settings
        self.codec = codec
        self.fixed: dict[str, Tensor] = {}
        self._set_size(*settings.image_size)

    # What a family says of itself -----------------------------------------------------------------

    @staticmethod
    @abstractmethod
    def transformer_class() -> Any:
        """Return the diffusers class of the backbone."""

    @classmethod
    @abstractmethod
    def open(cls, folder: Path, settings: StockSettings) -> Self:
        """Return the family of the frozen parts in ``folder``."""

    @staticmethod
    def vae_factor(config: Mapping[str, Any]) -> int:
        """Return image pixels per latent pixel, along a side, from the codec's configuration."""
        return vae_factor(config)

    @property
    def takes_source(self) -> bool:
        """Whether the backbone can edit."""
        return self.settings.pipeline in self.edit_pipelines

    @property
    def max_sources(self) -> int:
        """How many pictures an edit may have; 0 for a backbone that cannot edit."""
        return self.most_sources if self.takes_source else 0

    @property
    def sees_source(self) -> bool:
        """Whether the prompt encoders look at the source image."""
        return False

    @abstractmethod
    def parts(self) -> Sequence[Any]:
        """Return the frozen parts beside the codec, each with ``to``, ``networks`` and ``save``."""

    @abstractmethod
    def prompt_tensors(
        self, prompts: Sequence[str], images: Sequence[Sequence[Tensor]]
    ) -> dict[str, Tensor]:
        """Return the tensors of a condition that stand for its prompts, a row per prompt.

        Args:
            prompts: B texts.
            images: of every row the source images [3, H, W] in [0, 1] that the encoders see.
        """

    @abstractmethod
    def readings(self, prompt: str, *, edits: bool = False) -> tuple[Reading, ...]:
        """Return how much of ``prompt`` each text encoder reads."""

    @abstractmethod
    def fixed_texts(self) -> dict[str, Tensor]:
        """Return what the encoders say of texts that are no row's, by name; they are asked now."""

    @abstractmethod
    def null(self, condition: Condition) -> Condition:
        """Return ``condition`` with the empty prompt and the same source."""

    @abstractmethod
    def field(self, backbone: nn.Module) -> VelocityField:
        """Return the velocity field of ``backbone``."""

    @abstractmethod
    def mu(self, num_tokens: int, num_steps: int) -> float:
        """Return the shift that the pipeline gives a dynamically shifting scheduler."""

    # The contract ---------------------------------------------------------------------------------

    @classmethod
    def from_folder(cls, folder: Path, settings: Path | None = None) -> Self:
        """Return the family of a folder of :meth:`save_frozen`, or of a stock pipeline.

        Args:
            folder: where the weights are.
            settings: folder of :meth:`save_settings`; ``None``: they are the weights' own.

        Raises:
            WeightsError: if it is neither, or a file cannot be read.
        """
        path = (folder if settings is None else settings) / FROZEN_FILE
        if settings is None and not path.is_file():
            return cls.open(folder, cls._stock_settings(folder))
        found = read_json(path)
        try:
            told = StockSettings(
                pipeline=found["pipeline"],
                image_size=tuple(found["image_size"]),
                scheduler=found["scheduler"],
                transformer=found["transformer"],
            )
        except KeyError as error:
            raise WeightsError(f"{path}: the setting {error} is missing") from error
        return cls.open(folder, told)

    @classmethod
    def _stock_settings(cls, folder: Path) -> StockSettings:
        if not (folder / PIPELINE_FILE).is_file():
            raise WeightsError(
                f"{folder}: there is neither {FROZEN_FILE} nor {PIPELINE_FILE} in it"
            )
        pipeline, transformer = cls._stock_transformer(folder)
        return StockSettings(
            pipeline=pipeline,
            image_size=(DEFAULT_SIZE, DEFAULT_SIZE),
            scheduler=read_scheduler(folder),
            transformer=transformer,
        )

    @classmethod
    def _stock_transformer(cls, folder: Path) -> tuple[str, dict[str, Any]]:
        """Return the class of a stock pipeline and the arguments of its transformer."""
        pipeline = read_pipeline_class(folder)
        if pipeline not in cls.pipelines:
            raise WeightsError(f"{folder}: holds a {pipeline}, not a {' or '.join(cls.pipelines)}")
        return pipeline, read_transformer_config(folder, cls.transformer_class())

    @classmethod
    def sketch(cls, folder: Path) -> Sketch:
        """Return what configurations and the headers of weight files say of such a folder.

        Raises:
            WeightsError: if it is no such folder, or a file is missing or damaged.
        """
        if (folder / FROZEN_FILE).is_file():
            settings = read_json(folder / FROZEN_FILE)
            pipeline, transformer = settings.get("pipeline", ""), settings["transformer"]
        else:
            pipeline, transformer = cls._stock_transformer(folder)
        return Sketch(
            pipeline=pipeline,
            transformer=transformer,
            takes_source=pipeline in cls.edit_pipelines,
            factor=read_vae_factor(folder, cls.vae_factor),
            prompt_tokens=cls.prompt_length,
            frozen=count_frozen(folder),
        )

    @classmethod
    def bare_backbone(
        cls,
        transformer: Transformer,
        factor: int,  # noqa: ARG003
        *,
        edits: bool,  # noqa: ARG003
    ) -> tuple[nn.Module, tuple[str, ...]]:
        """Return a transformer alone and the ends of its adapters' names."""
        return cls.transformer_class()(**transformer), cls.adapter_targets

    @classmethod
    def new(cls, *_: Any) -> Self:
        """Raise ``WeightsError``: there is no such model without its pipeline's folder."""
        raise WeightsError(
            f"a {cls.name} model is not trained from scratch: danceflow bring-teachers takes a "
            "pipeline's folder"
        )

    def save_frozen(self, folder: Path) -> None:
        """Write encoders, codec and settings to ``folder``."""
        folder.mkdir(parents=True, exist_ok=True)
        for part in (*self.parts(), self.codec):
            part.save(folder)
        self.save_settings(folder)

    def save_settings(self, folder: Path) -> None:
        """Write what is known beside weights to ``folder``."""
        folder.mkdir(parents=True, exist_ok=True)
        settings = {
            "family": self.name,
            **asdict(self.settings),
            "image_size": self.image_size,
        }
        (folder / FROZEN_FILE).write_text(json.dumps(settings, indent=2) + "\n")

    def frozen_networks(self) -> dict[str, nn.Module]:
        """Return encoders and codec by the names of their folders."""
        parts = (*self.parts(), self.codec)
        return {name: network for part in parts for name, network in part.networks().items()}

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> Self:
        """Keep encoders and codec on ``device``; the encoders as ``dtype`` if one is given."""
        for part in self.parts():
            part.to(device, dtype)
        self.codec.to(device)
        return self

    def release(self) -> None:
        """Give the memory of what makes conditions back, until it is asked again."""
        for part in (*self.parts(), self.codec):
            part.release()

    def take_fixed(self, texts: Mapping[str, Tensor]) -> None:
        """Take what :meth:`fixed_texts` gave elsewhere, so that no encoder is asked here."""
        self.fixed.update(texts)

    def fixed_text(self, name: str, ask: Callable[[], Tensor]) -> Tensor:
        """Return what was taken or is asked now of a text that is no row's."""
        if name not in self.fixed:
            self.fixed[name] = ask()
        return self.fixed[name]

    def sized(self, height: int, width: int) -> Self:
        """Return this family, sharing its frozen parts, for images of another size.

        Raises:
            WeightsError: if a side is no multiple of a token's.
        """
        resized = copy.copy(self)
        resized._set_size(height, width)
        return resized

    def shifted(self, shift: float) -> Self:
        """Return this family, sharing its frozen parts, with another shift of the sigma grid.

        Raises:
            WeightsError: if its scheduler shifts the grid by the picture's size.
        """
        changed = copy.copy(self)
        scheduler = shifted_scheduler(self.settings.scheduler, shift)
        changed.settings = replace(self.settings, scheduler=scheduler)
        return changed

    @property
    def side(self) -> int:
        """Latent pixels along a side of a token."""
        return self.layout.side(self.settings.transformer)

    @property
    def unit(self) -> int:
        """Latent pixels of which the sides of a picture are multiples."""
        return self.side

    def _set_size(self, height: int, width: int) -> None:
        unit = self.codec.factor * self.unit
        if height % unit or width % unit or min(height, width) <= 0:
            raise WeightsError(
                f"this {self.name} model makes images whose sides are multiples of {unit} pixels, "
                f"not {height} x {width}"
            )
        factor = self.codec.factor
        self.image_size = (height, width)
        channels = self.layout.channels(self.settings.transformer)
        self.latent_shape = (channels, height // factor, width // factor)

    def editing(self) -> Self:
        """Return this family if it can edit.

        Raises:
            WeightsError: if it cannot: its network was not trained to read source tokens.
        """
        if not self.takes_source:
            raise WeightsError(
                f"a {self.settings.pipeline} cannot edit; of {self.name}, these pipelines can: "
                f"{', '.join(self.edit_pipelines)}"
            )
        return self

    def condition(
        self,
        prompts: Sequence[str],
        sources: Sources = None,
        images: Sources = None,
    ) -> Condition:
        """Return the condition of ``prompts``; see ``family.ModelFamily``."""
        given = as_sources(sources)
        if given and not self.takes_source:
            raise WeightsError(f"this {self.name} model takes no source and cannot edit")
        if len(given) > self.max_sources:
            most = "one source" if self.max_sources == 1 else f"{self.max_sources} sources"
            raise WeightsError(f"this {self.name} model takes {most}, and {len(given)} are given")
        seen: list[list[Tensor]] = [[] for _ in prompts]
        if given and self.sees_source:
            pixels = as_sources(images)
            if len(pixels) != len(given):
                raise WeightsError(f"{self.name} reads prompts beside the source, as pixels")
            for latents, pictures in zip(given, pixels, strict=True):
                there = rows_with_source(latents).tolist()
                for row, image in enumerate(pictures):
                    seen[row] += [image] if there[row] else []
        tensors = self.prompt_tensors(prompts, seen)
        return with_source(tensors, given, self.latent_shape, takes_source=self.takes_source)

    def unknown_words(self, prompt: str) -> list[str]:  # noqa: ARG002
        """Return no word: the tokenizer knows every byte."""
        return []

    def guided(self, field: VelocityField, scale: float) -> GuidedField:
        """Return ``field`` with classifier-free guidance."""
        return GuidedField(field, self.null, scale)

    def target_velocity(
        self,
        z_BCHW: Tensor,  # noqa: ARG002
        clean_BCHW: Tensor,
        noise_BCHW: Tensor,
        sigma_B: Tensor,  # noqa: ARG002
    ) -> Tensor:
        """Return eps - x."""
        return noise_BCHW - clean_BCHW

    def grid(self, num_steps: int) -> Tensor:
        """Return the stock pipeline's sigma grid for ``image_size``, [num_steps + 1] float32."""
        num_tokens = (self.latent_shape[1] // self.side) * (self.latent_shape[2] // self.side)
        mu = self.mu(num_tokens, num_steps)
        return linear_scheduler_grid(self.settings.scheduler, num_steps, mu)

    def encode(self, images_B3HW: Tensor) -> Tensor:
        """Return the latents of images in [0, 1]."""
        return self.codec.encode(images_B3HW)

    def decode(self, latents_BCHW: Tensor) -> Tensor:
        """Return the images of latents, clamped to [0, 1]."""
        return self.codec.decode(latents_BCHW)

    def new_backbone(self, seed: int) -> nn.Module:
        """Return an untrained transformer."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            backbone: nn.Module = self.transformer_class()(**self.settings.transformer)
        return backbone

    def load_backbone(self, folder: Path) -> nn.Module:
        """Return the transformer in ``folder`` as float32.

        Raises:
            WeightsError: if the weights are missing, truncated or of another shape.
        """
        backbone: nn.Module = self.transformer_class()(**self.settings.transformer)
        load_state(backbone, self.stored_weights(folder), folder)
        return backbone

    def empty_backbone(self) -> nn.Module:
        """Return a transformer whose parameters have no values yet."""
        from accelerate import init_empty_weights

        with init_empty_weights():
            backbone: nn.Module = self.transformer_class()(**self.settings.transformer)
        return backbone

    def stored_weights(self, folder: Path) -> dict[str, Tensor]:
        """Return the transformer's weights in ``folder``, as they are stored."""
        return read_state(folder)

    def save_backbone(self, backbone: nn.Module, folder: Path) -> None:
        """Write the transformer to ``folder`` as float16 in diffusers' format."""
        save_half(backbone, folder)

    def translate_adapter(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return an adapter's tensors under diffusers' names, as the stock pipeline reads them."""
        import diffusers

        pipeline = getattr(diffusers, self.settings.pipeline)
        translated: dict[str, Tensor] = pipeline.lora_state_dict(dict(tensors))
        return translated

    @classmethod
    def comfy_names(cls, settings: Mapping[str, Any]) -> dict[str, Original]:  # noqa: ARG003
        """Return the layers of the original code, as ComfyUI keeps them, by name.

        Nothing is returned where ComfyUI reads diffusers' names.
        """
        return {}

    def for_pipeline(self, backbone: nn.Module) -> tuple[str, nn.Module, Mapping[str, Any]]:
        """Return the stock pipeline's class, its network and its scheduler's configuration."""
        return self.settings.pipeline, backbone, self.settings.scheduler

    def export_adapter(self, backbone: nn.Module, folder: Path) -> None:
        """Write the student's adapter to ``folder``, as the stock pipelines load it."""
        save_adapter(backbone, folder)


def sources_there(condition: Condition) -> list[tuple[str, ...]]:
    """Return for every row of a condition the names of the sources that it has."""
    found: list[tuple[str, ...]] = [()] * condition.num_samples
    for name in SOURCES:
        if name in condition.tensors:
            there = rows_with_source(condition.tensors[name]).tolist()
            found = [
                (*names, name) if own else names for names, own in zip(found, there, strict=True)
            ]
    return found


def by_layout(
    z_BCHW: Tensor,
    sigma_B: Tensor,
    condition: Condition,
    velocity: Callable[[Tensor, Tensor, Condition, Sequence[Tensor]], Tensor],
) -> Tensor:
    """Return the velocities of a batch whose rows with other sources are laid out apart.

    Args:
        z_BCHW: states.
        sigma_B: their noise levels.
        condition: B rows.
        velocity: gives the velocity of states whose sources are those that are told, all of them
            in every row.
    """
    given = sources_there(condition)
    kinds = sorted(set(given))
    if len(kinds) == 1:
        return velocity(z_BCHW, sigma_B, condition, [condition.tensors[name] for name in kinds[0]])
    parts, order = [], []
    for kind in kinds:
        rows = [row for row, found in enumerate(given) if found == kind]
        at = torch.tensor(rows, device=z_BCHW.device)
        part = condition.select(at)
        sources = [part.tensors[name] for name in kind]
        parts.append(velocity(z_BCHW[at], sigma_B[at], part, sources))
        order += rows
    return torch.cat(parts)[torch.tensor(order, device=z_BCHW.device).argsort()]


def with_prompts(condition: Condition, prompts: Mapping[str, Tensor]) -> Condition:
    """Return ``condition`` with other prompt tensors, padded to the length they had.

    Raises:
        ValueError: if one is longer than what it replaces.
    """
    fitted = {
        name: pad_length(value, condition.tensors[name].shape[1]).to(condition.tensors[name])
        for name, value in prompts.items()
    }
    return Condition({**condition.tensors, **fitted})
