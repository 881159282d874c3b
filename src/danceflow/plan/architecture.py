"""Which network a recipe is about: a published one, a folder's, or the one its own sizes give."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from danceflow.errors import UsageError, WeightsError, unknown_name
from danceflow.models.families.pipeline_folder import FROZEN_FILE
from danceflow.models.family import family_class, layout_of
from danceflow.models.layout import Layout, Sketch
from danceflow.models.package import FROZEN_FOLDER
from danceflow.models.weights import read_json
from danceflow.worlds.world import open_world

if TYPE_CHECKING:
    from danceflow.params.sections import Params

ASSUMED_PROMPT_TOKENS = 128
"""Of a prompt in a family whose prompts are not padded to one length; the pipelines cut at 512."""


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
        edits: whether it is to edit; some families' transformers are widened for that.

    Raises:
        UsageError: unknown name, or the model cannot edit; the message names what can.
    """
    models, parts = published()["models"], published()["parts"]
    if name not in models:
        raise UsageError(unknown_name("model", name, models))
    model = models[name]
    family = model["family"]
    layout = layout_of(family)
    if edits and not (model["edits"] or layout.is_widened):
        other = layout.usual[1]
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


def architecture_of(
    params: "Params", model: str | None = None, teachers: Path | None = None
) -> Architecture:
    """Return the networks of a recipe.

    Without a model: where the recipe gives sizes, its own if they are those of a published model or
    of its images; else the teachers that lie in the checkout; else the family's usual published
    model.

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
    layout = layout_of(family)
    usual = layout.usual[edits]
    if layout.sizes:
        name = _published_sizes(params, layout)
        if name is not None:
            return published_architecture(name, edits=edits)
        # A small network paints pixels: images of another size are another network's.
        if params.data.image_size == params.family.transformer.sample_size:
            return _own_architecture(params)
        return published_architecture(usual, edits=edits)
    frozen = None if teachers is None else teachers / FROZEN_FOLDER
    if frozen is not None and (frozen / FROZEN_FILE).is_file():
        settings = read_json(frozen / FROZEN_FILE)
        if settings.get("family") == family:
            return folder_architecture(family, frozen, edits=edits)
    return published_architecture(usual, edits=edits)


def _published_sizes(params: "Params", layout: Layout) -> str | None:
    """Return the published model of the family whose sizes the recipe repeats, if one has them."""
    given = params.family.transformer.model_dump()
    for name, model in published()["models"].items():
        sizes = model["transformer"]
        if model["family"] == params.family.name and all(
            given[ours] == sizes[theirs] for ours, theirs in layout.sizes.items()
        ):
            return str(name)
    return None


def _own_architecture(params: "Params") -> Architecture:
    """Return the small network that a recipe trains from scratch."""
    words = open_world(params.data.world).words(())
    cls = family_class(params.family.name)
    sketch: Sketch = cls.sketch_new(params.family.model_dump(mode="json"), words)
    unknown = "" if words else ", without the vocabulary, which the data decide"
    return _sketched(
        sketch,
        name="the recipe's own",
        origin=f"family.transformer and family.text_encoder{unknown}",
        family=params.family.name,
        edits=sketch.takes_source,
        is_brought=False,
    )


def folder_architecture(family: str, folder: Path, *, edits: bool) -> Architecture:
    """Return the networks of a stock pipeline's folder, or of frozen parts saved by danceflow.

    Only configurations and the headers of weight files are read.

    Raises:
        WeightsError: a file is missing or damaged, or the pipeline is of another family.
    """
    if (folder / FROZEN_FILE).is_file():
        found = read_json(folder / FROZEN_FILE).get("family")
        if found != family:
            raise WeightsError(f"{folder}: is of family {found!r}, not {family!r}")
    sketch: Sketch = family_class(family).sketch(folder)
    layout = layout_of(family)
    takes_source = sketch.takes_source or (edits and layout.is_widened)
    if edits and not takes_source:
        raise UsageError(f"{folder}: a {sketch.pipeline} takes no source, but a capability edits")
    return _sketched(
        sketch,
        name=folder.name,
        origin=f"folder {folder}",
        family=family,
        edits=takes_source,
        is_brought=not layout.sizes or (folder / "vae").is_dir(),
    )


def _sketched(
    sketch: Sketch, *, name: str, origin: str, family: str, edits: bool, is_brought: bool
) -> Architecture:
    prompt = sketch.prompt_tokens
    return Architecture(
        name=name,
        origin=origin,
        family=family,
        edits=edits,
        transformer=sketch.transformer,
        factor=sketch.factor,
        prompt_tokens=ASSUMED_PROMPT_TOKENS if prompt is None else prompt,
        is_padded=prompt is not None,
        frozen=sketch.frozen,
        is_brought=is_brought,
        is_verified=True,
    )
