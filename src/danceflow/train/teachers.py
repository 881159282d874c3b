"""Stage ``teachers`` (frozen): trains the embedded default's teachers and scores them.

The text encoder learns to read first, then every teacher is trained on its bucket, from scratch or
from another teacher. An interrupted stage goes on at its last checkpoint. The teachers are scored
on the validation split of every capability, so that the test split stays unseen.
"""

import logging
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from danceflow.data.buckets import read_bucket
from danceflow.data.scene_stream import SceneStream
from danceflow.errors import ConfigError
from danceflow.evaluate.grids import image_grid
from danceflow.evaluate.quick import QuickBatch, quick_batch
from danceflow.models.family import ModelFamily, family_class, open_family
from danceflow.models.package import FROZEN_FOLDER, Teachers, write_manifest
from danceflow.ops.files import atomic_directory, fingerprint, write_json
from danceflow.scenes.prompts import vocabulary
from danceflow.train.finetune import finetune
from danceflow.train.text_encoder import pretrain_text_encoder

if TYPE_CHECKING:
    from danceflow.paths import Paths
    from danceflow.schema import Params

_LOG = logging.getLogger(__name__)
_GUIDANCE = (1.0, 1.5, 2.0, 3.0)
_GRID_ROWS = 8


def run(params: "Params", paths: "Paths") -> None:
    """Writes ``models/teachers``, ``reports/teachers`` and ``reports/teachers.json``.

    Raises:
        ConfigError: if a teacher starts from one that is not trained before it.
        TrainingError: if a training cannot go on.
    """
    started = time.monotonic()
    frozen = _text_encoder(params, paths)
    family = open_family(params.family.name, frozen)
    trained: dict[str, Path] = {}
    for name in params.teachers:
        trained[name] = _train(params, paths, family, name, trained)
    with atomic_directory(paths.teachers) as folder:
        shutil.copytree(frozen, folder / FROZEN_FOLDER)
        for name, place in trained.items():
            shutil.copytree(place / "final", folder / name)
        meta = {"family": family.name, "teachers": list(trained)}
        write_manifest(folder, meta)
    report = _score(params, paths)
    for name, place in trained.items():
        report["teachers"][name]["curve"] = _curve(place / "curve.jsonl")
    report["seconds"] = round(time.monotonic() - started, 1)
    write_json(paths.teachers_report, report)


def _text_encoder(params: "Params", paths: "Paths") -> Path:
    """Returns the folder of the frozen parts; trains the text encoder if it is not there."""
    config = params.family.model_dump(mode="json")
    key = fingerprint({"family": config, "seed": params.run.seed})
    folder = paths.work(f"text-encoder-{key[:16]}")
    if folder.exists():
        return folder
    family = family_class(params.family.name).new(config, vocabulary(), params.run.seed)
    tokenizer, encoder = family.prompts.clips[0]
    text = params.family.text_encoder
    accuracy = pretrain_text_encoder(
        tokenizer,
        encoder,
        num_updates=text.num_updates,
        batch_size=text.batch_size,
        learning_rate=text.learning_rate,
        seed=params.run.seed,
    )
    _LOG.info("text encoder: %.4f of validation prompts read whole", accuracy)
    with atomic_directory(folder) as place:
        family.save_frozen(place)
    return folder


def _train(
    params: "Params", paths: "Paths", family: ModelFamily, name: str, trained: dict[str, Path]
) -> Path:
    """Returns the work folder of a teacher; its ``final`` holds the weights."""
    config = params.teachers[name]
    if config.init != "scratch" and config.init not in trained:
        raise ConfigError(
            f"teachers.{name}.init: {config.init!r} is neither 'scratch' nor a teacher above it"
        )
    before = {"init": str(trained[config.init].name)} if config.init != "scratch" else {}
    key = fingerprint(
        {"teacher": config.model_dump(mode="json"), "seed": params.run.seed, **before}
        | {"family": params.family.model_dump(mode="json")}
    )
    work = paths.work(f"teacher-{name}-{key[:16]}")
    if (work / "final").exists():
        return work
    if config.init == "scratch":
        backbone = family.new_backbone(params.run.seed)
    else:
        backbone = family.load_backbone(trained[config.init] / "final")
    stream = SceneStream(
        family, config.bucket, config.num_samples, params.run.seed, config.category_weights
    )
    _LOG.info("training teacher %s", name)
    finetune(
        family,
        backbone,
        stream,
        config,
        seed=params.run.seed,
        work=work,
    )
    with atomic_directory(work / "final") as folder:
        family.save_backbone(backbone, folder)
    return work


def _score(params: "Params", paths: "Paths") -> dict[str, Any]:
    """Scores every teacher on every capability, its own one at several guidance scales."""
    teachers = Teachers(paths.teachers, params.family.name, list(params.teachers), "cpu")
    report: dict[str, Any] = {
        name: {
            "num_parameters": sum(p.numel() for p in backbone.parameters()),
            "num_updates": params.teachers[name].num_updates,
            "scores": {},
        }
        for name, backbone in teachers.backbones.items()
    }
    with atomic_directory(paths.teachers_images) as folder:
        for capability, config in params.capabilities.items():
            dataset = read_bucket(paths.bucket(config.bucket), "validation")
            batch = quick_batch(
                dataset, teachers.family, params.evaluate.num_samples, params.run.seed
            )
            for name in teachers.backbones:
                scales = _GUIDANCE if name == config.teacher else (config.guidance,)
                report[name]["scores"][capability] = {
                    f"{scale:g}": _scored(params, teachers, batch, name, scale) for scale in scales
                }
            _draw(params, teachers, batch, capability, folder / f"{capability}.png")
    return {"split": "validation", "num_steps": params.evaluate.num_steps, "teachers": report}


def _scored(
    params: "Params", teachers: Teachers, batch: QuickBatch, name: str, guidance: float
) -> dict[str, Any]:
    field = teachers.field(name, guidance)
    images = batch.sample(field, params.evaluate.num_steps, params.evaluate.batch_size)
    return batch.score(images)


def _draw(
    params: "Params", teachers: Teachers, batch: QuickBatch, capability: str, path: Path
) -> None:
    """Writes a grid: source, every teacher, exact target, with the prompts beside."""
    part = batch.head(_GRID_ROWS)
    columns = {} if part.source is None else {"source": part.source}
    for name, config in params.capabilities.items():
        field = teachers.field(config.teacher, config.guidance)
        label = f"{config.teacher} teacher" + (" (its own)" if name == capability else "")
        columns[label] = part.sample(field, params.evaluate.num_steps, _GRID_ROWS)
    columns["exact target"] = part.target
    image_grid(columns, part.prompts).save(path)


def _curve(path: Path) -> list[list[float]]:
    """Returns (update, loss, seconds) triples of a training curve, at most fifty."""
    import json

    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows = [row for row in rows if "loss" in row]
    step = max(1, len(rows) // 50)
    return [[row["step"], round(row["loss"], 5), row["seconds"]] for row in rows[::step]]
