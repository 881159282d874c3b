"""Trains the text encoder and one teacher after the other, each in a work folder of its own.

Everything computes where ``run.device`` says. A folder's key holds the code that this module
reaches; what scores teachers is no part of it.
"""

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from danceflow.data.bucket_stream import BucketStream
from danceflow.data.buckets import bucket_digest, read_bucket
from danceflow.data.scene_stream import SceneStream
from danceflow.errors import ConfigError
from danceflow.models.adapters import add_student_adapter, save_adapter
from danceflow.models.family import ModelFamily, family_class
from danceflow.ops import keys
from danceflow.ops.files import atomic_directory
from danceflow.scenes.prompts import vocabulary
from danceflow.schema import BROUGHT, SCRATCH
from danceflow.train.finetune import Batches, finetune
from danceflow.train.text_encoder import pretrain_on_prompts, pretrain_text_encoder, words_in

if TYPE_CHECKING:
    from danceflow.paths import Paths
    from danceflow.schema import Params, TeacherParams

_LOG = logging.getLogger(__name__)


def text_encoder(params: "Params", paths: "Paths") -> Path:
    """Returns the folder of the frozen parts; trains the text encoder if it is not there."""
    prompts = _prompts(params, paths)
    folder = keys.text_encoder(params, prompts).folder(paths)
    if folder.exists():
        os.utime(folder)  # `danceflow clean` goes by the last use
        return folder
    config = params.family.model_dump(mode="json")
    words = words_in(prompts) if prompts else vocabulary()
    family = family_class(params.family.name).new(config, words, params.run.seed)
    family.to(params.run.device)
    tokenizer, encoder = family.prompts.clips[0]
    text = params.family.text_encoder
    training: dict[str, Any] = {
        "num_updates": text.num_updates,
        "batch_size": text.batch_size,
        "learning_rate": text.learning_rate,
        "seed": params.run.seed,
    }
    if prompts:
        accuracy = pretrain_on_prompts(tokenizer, encoder, prompts, **training)
    else:
        accuracy = pretrain_text_encoder(tokenizer, encoder, **training)
    _LOG.info("text encoder: %.4f of prompts read whole", accuracy)
    with atomic_directory(folder) as place:
        family.save_frozen(place)
    return folder


def _prompts(params: "Params", paths: "Paths") -> list[str]:
    """Returns the distinct training prompts of all buckets; none for scenes, which draw more."""
    if params.data.source == "scenes":
        return []
    buckets = [read_bucket(paths.bucket(name), "train") for name in params.data.buckets]
    return sorted({prompt for dataset in buckets for prompt in dataset["prompt"]})


def _rows(params: "Params", paths: "Paths", bucket: str) -> str | None:
    """Returns the digest of a teacher's rows; none for scenes, which its parameters decide."""
    if params.data.source == "scenes":
        return None
    return bucket_digest(paths.bucket(bucket), "train")


def _batches(
    params: "Params", paths: "Paths", family: ModelFamily, config: "TeacherParams"
) -> Batches:
    if params.data.source == "scenes":
        return SceneStream(
            family, config.bucket, config.num_samples, params.run.seed, config.category_weights
        )
    dataset = read_bucket(paths.bucket(config.bucket), "train")
    return BucketStream(
        family, dataset, config.num_samples, params.run.seed, config.category_weights
    )


def train_teacher(
    params: "Params",
    paths: "Paths",
    family: ModelFamily,
    name: str,
    trained: Mapping[str, Path],
    frozen: str,
) -> Path:
    """Returns the work folder of a teacher; its ``final`` holds the weights.

    Args:
        params: all sections.
        paths: of the checkout.
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
    rows = _rows(params, paths, config.bucket)
    work = keys.teacher(params, name, frozen, init, rows).touched(paths)
    if (work / "final").exists():
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
        _batches(params, paths, family, config),
        config,
        seed=params.run.seed,
        work=work,
    )
    with atomic_directory(work / "final") as folder:
        if config.adapter_rank is None:
            family.save_backbone(backbone, folder)
        else:
            save_adapter(backbone, folder)
    return work
