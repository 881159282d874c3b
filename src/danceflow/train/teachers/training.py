"""Trains the text encoder and one teacher after the other, each in a work folder of its own.

Everything computes where ``run.device`` says. A folder's key holds the code that this module
reaches; what scores teachers is no part of it.
"""

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from danceflow.data.buckets import bucket_digest, read_bucket
from danceflow.errors import ConfigError
from danceflow.models.adapters.lora import add_student_adapter, save_adapter
from danceflow.models.family import ModelFamily, family_class
from danceflow.ops import keys
from danceflow.ops.files import atomic_directory
from danceflow.ops.group import current
from danceflow.params.names import BROUGHT, SCRATCH
from danceflow.train.teachers.finetune import finetune
from danceflow.train.teachers.stream import PoolStream
from danceflow.train.teachers.text_encoder import pretrain_text_encoder
from danceflow.worlds.world import open_world

if TYPE_CHECKING:
    from danceflow.params.sections import Params, TeacherParams
    from danceflow.paths import Paths

_LOG = logging.getLogger(__name__)


def text_encoder(params: "Params", paths: "Paths") -> Path:
    """Return the folder of the frozen parts; trains the text encoder if it is not there."""
    prompts = _prompts(params, paths)
    folder = keys.text_encoder(params, prompts).folder(paths)
    group = current()
    if group.told(folder.exists()):
        os.utime(folder)  # `danceflow clean` goes by the last use
        return folder
    if not group.is_main:  # it is a matter of seconds
        group.wait()
        return folder
    config = params.family.model_dump(mode="json")
    world = open_world(params.data.world)
    family = family_class(params.family.name).new(config, world.words(prompts), params.run.seed)
    family.to(params.run.device)
    tokenizer, encoder = family.prompts.clips[0]
    text = params.family.text_encoder
    pretrain_text_encoder(
        tokenizer,
        encoder,
        world.reading(prompts, params.run.seed),
        num_updates=text.num_updates,
        batch_size=text.batch_size,
        learning_rate=text.learning_rate,
        seed=params.run.seed,
    )
    with atomic_directory(folder) as place:
        family.save_frozen(place)
    group.wait()
    return folder


def _prompts(params: "Params", paths: "Paths") -> list[str]:
    """Return the distinct training prompts of all buckets."""
    buckets = [read_bucket(paths.bucket(name), "train") for name in params.data.buckets]
    return sorted({prompt for dataset in buckets for prompt in dataset["prompt"]})


def _batches(
    params: "Params", data: "Paths", family: ModelFamily, config: "TeacherParams"
) -> PoolStream:
    dataset = read_bucket(data.bucket(config.bucket), "train")
    pool = open_world(params.data.world).pool(
        dataset, config.bucket, config.num_samples, params.run.seed, config.category_weights
    )
    return PoolStream(family, pool, params.run.seed)


def train_teacher(
    params: "Params",
    paths: "Paths",
    data: "Paths",
    family: ModelFamily,
    name: str,
    trained: Mapping[str, Path],
    frozen: str,
) -> Path:
    """Return the work folder of a teacher; its ``final`` holds the weights.

    Args:
        params: all sections.
        paths: of the checkout.
        data: where the buckets lie.
        family: the frozen parts, where ``run.device`` says.
        name: of the teacher.
        trained: work folders of those that it may start from.
        frozen: what stands for the frozen parts in its key.

    Raises:
        ConfigError: if it was brought along, or starts from one that is not trained before.
        TrainingError: if the training cannot go on.
    """
    config = params.teachers[name]
    if config.init == BROUGHT:
        raise ConfigError(
            f"teachers.{name}: is not in {paths.teachers}; danceflow bring-teachers puts it there"
        )
    if config.init != SCRATCH and config.init not in trained:
        raise ConfigError(
            f"teachers.{name}.init: {config.init!r} is neither 'scratch' nor a teacher above it"
        )
    init = trained[config.init].name if config.init != SCRATCH else None
    rows = bucket_digest(data.bucket(config.bucket), "train")
    work = keys.teacher(params, name, frozen, init, rows).touched(paths)
    group = current()
    if group.told((work / "final").exists()):
        return work
    if config.init == SCRATCH:
        backbone = family.new_backbone(params.run.seed)
    else:
        backbone = family.load_backbone(trained[config.init] / "final")
    backbone.to(params.run.device).requires_grad_(True)
    if config.adapter_rank is not None:
        rank = config.adapter_rank
        add_student_adapter(family, backbone, rank=rank, alpha=rank, seed=params.run.seed)
    _LOG.info("training teacher %s", name)
    finetune(
        family,
        backbone,
        _batches(params, data, family, config),
        config,
        seed=params.run.seed,
        work=work,
    )
    if group.is_main:
        with atomic_directory(work / "final") as folder:
            if config.adapter_rank is None:
                family.save_backbone(backbone, folder)
            else:
                save_adapter(backbone, folder)
    group.wait()
    return work
