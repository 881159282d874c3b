"""Students that are adapters on a small stock pipeline, and the latents that they make."""

from pathlib import Path

import torch
from tiny_models import PROMPTS, shake, stock_pipeline
from tiny_stock import flux2_pipeline
from torch import Tensor, nn

from danceflow.fields import VelocityField, normal, sample
from danceflow.models.adapters.lora import add_student_adapter
from danceflow.models.bring import bring_teachers
from danceflow.models.family import ModelFamily
from danceflow.models.pack import save_adapter_package
from danceflow.models.teachers import Teachers

SIDE, STEPS = 16, 3
HUB_NAME = "hf://somebody/small-sd3@main"
LICENCES = {"base": "openrail"}


def write_published(folder: Path) -> Path:
    """Write a stock pipeline as it is published: bfloat16, in shards."""
    made = stock_pipeline()
    for part in made.components.values():
        if isinstance(part, nn.Module):
            part.to(torch.bfloat16)
    made.save_pretrained(folder, max_shard_size="20KB")
    return folder


def write_teachers(folder: Path, pipeline: Path) -> Path:
    """Bring a pipeline that can then edit, as from the hub."""
    bring_teachers("sd3", pipeline, {}, folder, edits=True, origin=HUB_NAME, licences=LICENCES)
    return folder


def write_flux2_student(folder: Path) -> Path:
    """Write an adapter on teachers beside it that edit several pictures, without its base."""
    flux2_pipeline().save_pretrained(folder.parent / "stock")
    place = folder.parent / "teachers"
    bring_teachers("flux2", folder.parent / "stock", {}, place, edits=True)
    teachers = Teachers(place, "flux2", ["base"], "cpu")
    network = teachers.family.load_backbone(place / "base").requires_grad_(False).eval()
    shake(add_student_adapter(teachers.family, network, rank=2, alpha=2.0, seed=1), 1)
    family = teachers.family.sized(SIDE, SIDE)
    meta = {"num_steps": STEPS, "image_sizes": [[SIDE, SIDE]], "teachers_digest": teachers.digest}
    folder.mkdir()
    save_adapter_package(folder, family, network, teachers, {"base": 1.0}, meta)
    return folder


def write_student(teachers: Teachers, folder: Path, seed: int) -> Tensor:
    """Write an adapter on the teachers' base, and return its latents; the seed decides both."""
    family = teachers.family.sized(SIDE, SIDE)
    network = teachers.family.load_backbone(teachers.folder / "base").requires_grad_(False).eval()
    shake(add_student_adapter(family, network, rank=2, alpha=2.0, seed=seed), seed)
    folder.mkdir(parents=True)
    meta = {
        "num_steps": STEPS,
        "image_sizes": [[SIDE, SIDE]],
        "teachers_digest": teachers.digest,
        "capabilities": {"t2i": {"teacher": "base", "data": f"rows-of-{seed}"}},
        "licences": teachers.meta["licences"],
    }
    save_adapter_package(folder, family, network, teachers, {"base": 1.0}, meta)
    return latents_of(family, family.field(network))


def latents_of(family: ModelFamily, field: VelocityField) -> Tensor:
    """What a field makes of two prompts, each beside a source."""
    noise, source = normal(family.latent_shape, [1, 2]), normal(family.latent_shape, [3, 4])
    condition = family.condition(PROMPTS, source)
    with torch.no_grad():
        return sample(field, noise, condition, family.grid(STEPS))
