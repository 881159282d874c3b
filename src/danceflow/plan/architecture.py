"""Which network a recipe is about: a published one, a folder's, or the one its own sizes give."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from danceflow.errors import UsageError, WeightsError, unknown_name
from danceflow.models.families.pipeline_folder import (
    read_pipeline_class,
    read_transformer_config,
)
from danceflow.models.families.stock import FROZEN_FILE, StockFamily
from danceflow.models.family import family_class
from danceflow.models.weights import read_json
from danceflow.plan.layouts import ASSUMED_PROMPT_TOKENS, LAYOUTS
from danceflow.worlds.world import open_world

if TYPE_CHECKING:
    from danceflow.params.sections import Params

_EDIT_PIPELINES = ("QwenImageEditPipeline", "ZImageOmniPipeline", "Flux2KleinPipeline")
_NOT_FROZEN = ("transformer", "scheduler")
# What a params file says of a network of the SD3 family, and its name in diffusers.
_SIZES = {
    "num_layers": "num_layers",
    "num_heads": "num_attention_heads",
    "head_dim": "attention_head_dim",
    "patch_size": "patch_size",
    "out_channels": "out_channels",
}


@dataclass(frozen=True)
class Architecture:
    """The networks of a pipeline, without weights.

    Attributes:
        name: what it is called in the output.
        origin: where its sizes come from, in words.
        family: name of its family.
        edits: whether the transformer takes a source.
        transformer: arguments of its diffusers class.
        factor: image pixels per latent pixel, along a side.
        prompt_tokens: of a prompt's text.
        is_padded: whether every prompt has that length; else it is an assumption.
        frozen: parameters of every other part by name: text encoders, codec, vision encoder.
        is_brought: whether its weights come from a stock pipeline.
        is_verified: whether its sizes were seen in a published configuration or in files.
    """

    name: str
    origin: str
    family: str
    edits: bool
    transformer: Mapping[str, Any]
    factor: int
    prompt_tokens: int
    is_padded: bool
    frozen: Mapping[str, int]
    is_brought: bool
    is_verified: bool


@cache
def published() -> Mapping[str, Any]:
    """Return the content of ``models.json``: parts and models, each with its source."""
    text = resources.files("danceflow.plan").joinpath("models.json").read_text(encoding="utf-8")
    content: Mapping[str, Any] = json.loads(text)
    return content


def published_architecture(name: str, *, edits: bool) -> Architecture:
    """Return a published model.

    Args:
        name: one of ``models.json``.
        edits: whether it is to edit; an SD3 transformer is widened for that.

    Raises:
        UsageError: unknown name, or the model cannot edit; the message names what can.
    """
    models, parts = published()["models"], published()["parts"]
    if name not in models:
        raise UsageError(unknown_name("model", name, models))
    model = models[name]
    family = model["family"]
    if edits and not (model["edits"] or can_be_widened(family)):
        other = LAYOUTS[family].usual[1]
        raise UsageError(f"model {name!r} takes no source, but a capability edits; use {other!r}")
    prompt = model["prompt_tokens"]
    return Architecture(
        name=name,
        origin=f"published configuration ({model['source']})",
        family=family,
        edits=model["edits"] or edits,
        transformer=model["transformer"],
        factor=model["codec_factor"],
        prompt_tokens=ASSUMED_PROMPT_TOKENS if prompt is None else prompt,
        is_padded=prompt is not None,
        frozen={part: parts[part]["parameters"] for part in model["frozen"]},
        is_brought=True,
        is_verified=model["verified"] and all(parts[p]["verified"] for p in model["frozen"]),
    )


def can_be_widened(family: str) -> bool:
    """Return whether a transformer that takes no source is given channels for one.

    Stock families take sources as tokens, with a pipeline that is made for it.
    """
    return not issubclass(family_class(family), StockFamily)


def architecture_of(
    params: "Params", model: str | None = None, teachers: Path | None = None
) -> Architecture:
    """Return the networks of a recipe.

    Without a model: for SD3, the recipe's own sizes where they are those of a published model or
    of its images; for other families the teachers that lie in the checkout; else the family's
    usual published model.

    Args:
        params: the recipe.
        model: a published name, or a pipeline's folder.
        teachers: the checkout's folder of teachers, if there is one.

    Raises:
        UsageError: the model is unknown, of another family, or cannot edit.
        WeightsError: a folder cannot be read.
    """
    family = params.family.name
    edits = any(capability.needs_source for capability in params.capabilities.values())
    if model is None:
        return _unnamed(params, teachers, edits=edits)
    if Path(model).is_dir():
        return folder_architecture(family, Path(model), edits=edits)
    found = published_architecture(model, edits=edits)
    if found.family != family:
        raise UsageError(
            f"model {model!r} is of family {found.family!r}, but family.name is {family!r}"
        )
    return found


def _unnamed(params: "Params", teachers: Path | None, *, edits: bool) -> Architecture:
    family = params.family.name
    usual = LAYOUTS[family].usual[edits]
    if not issubclass(family_class(family), StockFamily):  # its sizes are the recipe's
        name = _published_sizes(params)
        if name is not None:
            return published_architecture(name, edits=edits)
        # The small family paints pixels: images of another size are another network's.
        if params.data.image_size == params.family.transformer.sample_size:
            return _own_architecture(params)
        return published_architecture(usual, edits=edits)
    frozen = None if teachers is None else teachers / "frozen"
    if frozen is not None and (frozen / FROZEN_FILE).is_file():
        settings = read_json(frozen / FROZEN_FILE)
        if settings.get("family") == family:
            return folder_architecture(family, frozen, edits=edits)
    return published_architecture(usual, edits=edits)


def _published_sizes(params: "Params") -> str | None:
    """Return the published model of the family whose sizes the recipe repeats, if one has them."""
    given = params.family.transformer.model_dump()
    for name, model in published()["models"].items():
        sizes = model["transformer"]
        if model["family"] == params.family.name and all(
            given[ours] == sizes[theirs] for ours, theirs in _SIZES.items()
        ):
            return str(name)
    return None


def _own_architecture(params: "Params") -> Architecture:
    """Return the small family that a recipe trains from scratch."""
    words = open_world(params.data.world).words(())
    config = params.family.model_dump(mode="json")
    family = family_class(params.family.name).new(config, words, seed=0)
    encoders = sum(p.numel() for _, e in family.prompts.clips for p in e.parameters())
    unknown = "" if words else ", without the vocabulary, which the data decide"
    return Architecture(
        name="the recipe's own",
        origin=f"family.transformer and family.text_encoder{unknown}",
        family=params.family.name,
        edits=family.takes_source,
        transformer=family.transformer_config,
        factor=family.codec.factor,
        prompt_tokens=family.prompts.max_length,
        is_padded=True,
        frozen={"text_encoder": encoders},
        is_brought=False,
        is_verified=True,
    )


def folder_architecture(family: str, folder: Path, *, edits: bool) -> Architecture:
    """Return the networks of a stock pipeline's folder, or of frozen parts saved by danceflow.

    Only configurations and the headers of weight files are read.

    Raises:
        WeightsError: a file is missing or damaged, or the pipeline is of another family.
    """
    cls = family_class(family)
    if (folder / FROZEN_FILE).is_file():
        settings = read_json(folder / FROZEN_FILE)
        if settings.get("family") != family:
            raise WeightsError(f"{folder}: is of family {settings.get('family')!r}, not {family!r}")
        transformer, pipeline = settings["transformer"], settings.get("pipeline", "")
    else:
        pipeline = read_pipeline_class(folder)
        if issubclass(cls, StockFamily):
            if pipeline not in cls.pipelines:
                known = " or ".join(cls.pipelines)
                raise WeightsError(f"{folder}: holds a {pipeline}, not a {known}")
            transformer = read_transformer_config(folder, cls.transformer_class())
        else:
            if not pipeline.startswith("StableDiffusion3"):
                raise WeightsError(f"{folder}: holds a {pipeline}, not an SD3 pipeline")
            config = read_json(folder / "transformer" / "config.json")
            transformer = {key: value for key, value in config.items() if not key.startswith("_")}
    takes_source = pipeline in _EDIT_PIPELINES
    if can_be_widened(family):
        takes_source = edits or transformer["in_channels"] > transformer["out_channels"]
    elif edits and not takes_source:
        raise UsageError(f"{folder}: a {pipeline} takes no source, but a capability edits")
    prompt = LAYOUTS[family].prompt_tokens(folder)
    return Architecture(
        name=folder.name,
        origin=f"folder {folder}",
        family=family,
        edits=takes_source,
        transformer=transformer,
        factor=_factor(family, folder),
        prompt_tokens=ASSUMED_PROMPT_TOKENS if prompt is None else prompt,
        is_padded=prompt is not None,
        frozen=_parts(folder),
        is_brought=issubclass(cls, StockFamily) or (folder / "vae").is_dir(),
        is_verified=True,
    )


def _factor(family: str, folder: Path) -> int:
    """Return image pixels per latent pixel, as the families' codecs work it out."""
    if not (folder / "vae").is_dir():
        return 1
    return LAYOUTS[family].factor(read_json(folder / "vae" / "config.json"))


def _parts(folder: Path) -> dict[str, int]:
    """Return the parameters of every frozen part, from the headers of its weight files.

    Raises:
        WeightsError: a file is damaged.
    """
    from safetensors import SafetensorError, safe_open

    found: dict[str, int] = {}
    for part in sorted(child for child in folder.iterdir() if child.is_dir()):
        if part.name in _NOT_FROZEN:
            continue
        for path in sorted(part.glob("*.safetensors")):
            count = 0
            try:
                with safe_open(path, framework="pt") as file:
                    for key in file.keys():  # noqa: SIM118
                        size = 1
                        for side in file.get_slice(key).get_shape():
                            size *= side
                        count += size
            except (OSError, SafetensorError) as error:
                raise WeightsError(f"{path}: cannot be read: {error}") from error
            found[part.name] = found.get(part.name, 0) + count
    return found
