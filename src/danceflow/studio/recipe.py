"""How a picture was made, and that story inside its PNG file.

A file carries it three times: as JSON of our own, which restores everything; as the ``parameters``
text that Automatic1111's tools read; and as the ``prompt`` graph in which ComfyUI, and what reads
its files, look for sampler and text. What comes back in a file is a stranger's and is checked.
"""

import base64
import io
import json
from typing import TYPE_CHECKING, Annotated, Any

from PIL import Image, PngImagePlugin
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from danceflow.errors import DataError
from danceflow.pictures import decode, plain, png_base64, png_bytes

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

KEY, A1111_KEY, COMFY_KEY = "danceflow", "parameters", "prompt"
PAPER = "#ffffff"
MAX_EMBEDDED = 1 << 20
"""Bytes of the pictures that a recipe holds; larger ones are named by their digest only."""

_MAX_TEXT = 4 << 20
_MAX_SEED = 2**63 - 1
_NEGATIVE_INPUT, _LATENT, _MODEL, _POSITIVE, _SAMPLER, _DECODED, _SAVED = map(str, range(1, 8))

Text = Annotated[str, Field(max_length=2000)]
Name = Annotated[str, Field(max_length=200)]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{0,64}$")]


class Recipe(BaseModel):
    """What a picture was made from.

    Attributes:
        prompt: what was asked.
        capability: ``text to image`` or ``edit``.
        seed: of the noise; ``danceflow generate --seed`` makes the same with it.
        steps: solver steps.
        guidance: classifier-free guidance scale.
        size: ``WIDTHxHEIGHT`` of the result.
        model: name of the student or teacher.
        version: of the model in the registry; 0: it came from elsewhere.
        digest: SHA-256 of the model's files.
        sources: SHA-256 of the pixels of every picture that was changed.
        has_mask: whether pixels outside a mask were put back.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    prompt: Text
    capability: Annotated[str, Field(pattern="^(text to image|edit)$")]
    seed: Annotated[int, Field(ge=0, le=_MAX_SEED)]
    steps: Annotated[int, Field(ge=1, le=10_000)]
    guidance: Annotated[float, Field(ge=0.0, le=100.0, allow_inf_nan=False)]
    size: Annotated[str, Field(pattern=r"^\d{1,5}x\d{1,5}$")]
    model: Name
    version: Annotated[int, Field(ge=0)]
    digest: Digest
    sources: tuple[Digest, ...] = ()
    has_mask: bool = False

    @property
    def told_model(self) -> str:
        """Name and version, as people say it."""
        return f"{self.model} v{self.version}" if self.version else self.model


class Carried(BaseModel):
    """What a file of the studio says about itself.

    Attributes:
        recipe: how it was made.
        sources: base64 PNG of every source, empty where they were too large.
        mask: base64 PNG of what might change; None: there was none, or it was too large.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    recipe: Recipe
    sources: tuple[str, ...] = ()
    mask: str | None = None


def with_recipe(
    picture: Image.Image,
    recipe: Recipe,
    sources: "Sequence[Image.Image]" = (),
    mask: Image.Image | None = None,
) -> bytes:
    """Return a PNG file that tells how it was made, sources and mask in it where they are small.

    Args:
        picture: the result.
        recipe: how it was made.
        sources: the pictures that were changed, as the model saw them.
        mask: what might change, mode L.
    """
    files = [png_bytes(image, compress_level=9) for image in (*sources, *([mask] if mask else []))]
    fits = sum(map(len, files)) <= MAX_EMBEDDED
    texts = [png_base64(file) for file in files] if fits else []
    carried = Carried(
        recipe=recipe,
        sources=tuple(texts[: len(sources)]),
        mask=texts[-1] if texts and mask is not None else None,
    )
    info = PngImagePlugin.PngInfo()
    info.add_itxt(A1111_KEY, as_a1111(recipe))
    info.add_text(COMFY_KEY, json.dumps(as_comfy(recipe)))
    info.add_itxt(KEY, carried.model_dump_json())
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", pnginfo=info, compress_level=6)
    return buffer.getvalue()


def read_recipe(image: Image.Image) -> Carried | None:
    """Return what a decoded picture says about itself; None: nothing of ours.

    Raises:
        DataError: it says something that no studio wrote.
    """
    text = getattr(image, "text", {}).get(KEY)
    if text is None:
        return None
    if len(text) > _MAX_TEXT:
        raise DataError("its recipe is too long")
    try:
        return Carried.model_validate_json(str(text))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"])) or "it"
        raise DataError(f"its recipe cannot be read: {place}: {first['msg']}") from None


def embedded(text: str) -> Image.Image:
    """Return a picture that a recipe holds, in RGB.

    Raises:
        DataError: it is none.
    """
    try:
        return plain(decode(base64.b64decode(text, validate=True)), PAPER)
    except ValueError:
        raise DataError("a picture in its recipe is no base64 text") from None


def as_a1111(recipe: Recipe) -> str:
    """Return a recipe as Automatic1111 writes it: the prompts, then names and values.

    The negative prompt is empty: ComfyUI reads nothing of a text that has no line of it.
    """
    values: Mapping[str, Any] = {
        "Steps": recipe.steps,
        "Sampler": "Euler",
        "CFG scale": f"{recipe.guidance:g}",
        "Seed": recipe.seed,
        "Size": recipe.size,
        "Model hash": recipe.digest[:10],
        "Model": recipe.told_model.replace(",", " ").replace(":", " "),
    }
    told = ", ".join(f"{name}: {value}" for name, value in values.items() if value != "")
    return f"{recipe.prompt}\nNegative prompt:\n{told}"


def as_comfy(recipe: Recipe) -> dict[str, Any]:
    """Return a recipe as a graph of ComfyUI's nodes, as its files hold one under ``prompt``."""
    width, height = map(int, recipe.size.split("x"))
    clip = [_MODEL, 1]
    return {
        _MODEL: {
            "class_type": "CheckpointLoaderSimple",
            "inputs": {"ckpt_name": recipe.told_model},
        },
        _POSITIVE: {
            "class_type": "CLIPTextEncode",
            "inputs": {"text": recipe.prompt, "clip": clip},
        },
        _NEGATIVE_INPUT: {"class_type": "CLIPTextEncode", "inputs": {"text": "", "clip": clip}},
        _LATENT: {
            "class_type": "EmptyLatentImage",
            "inputs": {"width": width, "height": height, "batch_size": 1},
        },
        _SAMPLER: {
            "class_type": "KSampler",
            "inputs": {
                "seed": recipe.seed,
                "steps": recipe.steps,
                "cfg": recipe.guidance,
                "sampler_name": "euler",
                "scheduler": "simple",
                "denoise": 1.0,
                "model": [_MODEL, 0],
                "positive": [_POSITIVE, 0],
                "negative": [_NEGATIVE_INPUT, 0],
                "latent_image": [_LATENT, 0],
            },
        },
        _DECODED: {
            "class_type": "VAEDecode",
            "inputs": {"samples": [_SAMPLER, 0], "vae": [_MODEL, 2]},
        },
        _SAVED: {
            "class_type": "SaveImage",
            "inputs": {"filename_prefix": "danceflow", "images": [_DECODED, 0]},
        },
    }
