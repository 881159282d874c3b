"""Stage ``teachers`` (frozen): trains the teachers on the prepared data and scores them.

The text encoder learns to read first, then every teacher is trained on its bucket, from scratch or
from another teacher, as a whole or as a LoRA adapter. An interrupted stage goes on at its last
checkpoint. The teachers are scored on the validation split of every capability, so that the test
split stays unseen.
"""

import json
import logging
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from danceflow.config import require_trained_here
from danceflow.data.buckets import read_bucket
from danceflow.errors import ConfigError, WeightsError
from danceflow.evaluate.grids import image_grid
from danceflow.evaluate.quick import QuickBatch, quick_batch
from danceflow.models.adapters import add_student_adapter, save_adapter
from danceflow.models.family import ModelFamily, family_class, open_family
from danceflow.models.package import FROZEN_FOLDER, Teachers, read_manifest, write_manifest
from danceflow.ops.files import atomic_directory, fingerprint, write_json
from danceflow.paths import Paths
from danceflow.schema import BROUGHT, SCRATCH
from danceflow.train.finetune import finetune
from danceflow.train.stream import PoolStream
from danceflow.train.text_encoder import pretrain_text_encoder
from danceflow.worlds import prepare
from danceflow.worlds.world import open_world

if TYPE_CHECKING:
    from danceflow.schema import Params, TeacherParams

_LOG = logging.getLogger(__name__)
_GUIDANCE = (1.0, 1.5, 2.0, 3.0)
_GRID_ROWS = 8
_SPLIT = "validation"


def run(params: "Params", paths: Paths) -> None:
    """Writes ``models/teachers``, ``reports/teachers`` and ``reports/teachers.json``.

    Raises:
        ConfigError: if a teacher was brought along, or starts from one that is not trained before.
        TrainingError: if a training cannot go on.
    """
    started = time.monotonic()
    require_trained_here(params, str(paths.params))
    frozen = _text_encoder(params, paths)
    family = open_family(params.family.name, frozen)
    trained: dict[str, Path] = {}
    for name in params.teachers:
        trained[name] = _train(params, paths, paths, family, name, trained)
    _write(params, paths, frozen, trained)
    report: dict[str, Any] = {"split": _SPLIT, "num_steps": params.evaluate.num_steps}
    report["teachers"] = {}
    _score(params, paths, paths, report)
    for name, place in trained.items():
        report["teachers"][name]["curve"] = _curve(place / "curve.jsonl")
    report["seconds"] = round(time.monotonic() - started, 1)
    write_json(paths.teachers_report, report)


def add(params: "Params", paths: Paths) -> list[str]:
    """Returns the teachers of ``params`` that ``models/teachers`` lacked; they are in it now.

    Those that are there stay as they are, whatever the parameters say about their training. What
    ``reports/teachers.json`` lacks is scored and drawn.

    Raises:
        ConfigError: if a teacher starts from one that is neither there nor above it.
        WeightsError: if ``models/teachers`` is damaged or of another family.
        TrainingError: if a training cannot go on; running again resumes it.
    """
    manifest = read_manifest(paths.teachers)
    if manifest["family"] != params.family.name:
        raise WeightsError(
            f"{paths.teachers}: holds teachers of family {manifest['family']!r}, the parameters "
            f"ask for {params.family.name!r}"
        )
    frozen = paths.teachers / FROZEN_FOLDER
    family = open_family(params.family.name, frozen)
    trained = {name: _kept(paths, name, manifest) for name in manifest["teachers"]}
    added = [name for name in params.teachers if name not in trained]
    data = Paths(paths.work(f"teachers-data-{fingerprint(params.select(('data',)))[:16]}"))
    if not data.data_report.exists():
        prepare.run(params, data)
    for name in added:
        trained[name] = _train(params, paths, data, family, name, trained)
    if added:
        _write(params, paths, frozen, trained)
    report = json.loads(paths.teachers_report.read_text())
    _score(params, paths, data, report)
    for name in added:
        report["teachers"][name]["curve"] = _curve(trained[name] / "curve.jsonl")
    write_json(paths.teachers_report, report)
    return added


def _kept(paths: Paths, name: str, manifest: Mapping[str, Any]) -> Path:
    """Returns a work folder whose ``final`` is a copy of a teacher that is there already."""
    files = {file: sha for file, sha in manifest["files"].items() if file.startswith(f"{name}/")}
    work = paths.work(f"teacher-{name}-kept-{fingerprint(files)[:16]}")
    if not (work / "final").exists():
        with atomic_directory(work / "final") as folder:
            shutil.copytree(paths.teacher(name), folder, dirs_exist_ok=True)
    return work


def _write(params: "Params", paths: Paths, frozen: Path, trained: Mapping[str, Path]) -> None:
    """Writes ``models/teachers``: frozen parts, every teacher's weights, the manifest."""
    bases = [t.init for t in params.teachers.values() if t.adapter_rank is not None]
    meta = {"family": params.family.name, "teachers": list(trained)}
    with atomic_directory(paths.teachers) as folder:
        shutil.copytree(frozen, folder / FROZEN_FOLDER)
        for name, place in trained.items():
            shutil.copytree(place / "final", folder / name)
        write_manifest(folder, meta | ({"base": bases[0]} if bases else {}))


def _text_encoder(params: "Params", paths: Paths) -> Path:
    """Returns the folder of the frozen parts; trains the text encoder if it is not there."""
    config, world = params.family.model_dump(mode="json"), open_world(params.data.world)
    prompts = _prompts(params, paths)
    key = fingerprint(
        {"family": config, "seed": params.run.seed, "world": world.name, "prompts": prompts}
    )
    folder = paths.work(f"text-encoder-{key[:16]}")
    if folder.exists():
        return folder
    reading = world.reading(prompts, params.run.seed)
    family = family_class(params.family.name).new(config, world.words(prompts), params.run.seed)
    tokenizer, encoder = family.prompts.clips[0]
    text = params.family.text_encoder
    pretrain_text_encoder(
        tokenizer,
        encoder,
        reading,
        num_updates=text.num_updates,
        batch_size=text.batch_size,
        learning_rate=text.learning_rate,
        seed=params.run.seed,
    )
    with atomic_directory(folder) as place:
        family.save_frozen(place)
    return folder


def _prompts(params: "Params", paths: "Paths") -> list[str]:
    """Return the distinct training prompts of all buckets."""
    buckets = [read_bucket(paths.bucket(name), "train") for name in params.data.buckets]
    return sorted({prompt for dataset in buckets for prompt in dataset["prompt"]})


def _batches(
    params: "Params", dataset: Any, family: ModelFamily, config: "TeacherParams"
) -> PoolStream:
    pool = open_world(params.data.world).pool(
        dataset, config.bucket, config.num_samples, params.run.seed, config.category_weights
    )
    return PoolStream(family, pool, params.run.seed)


def _train(
    params: "Params",
    paths: Paths,
    data: Paths,
    family: ModelFamily,
    name: str,
    trained: dict[str, Path],
) -> Path:
    """Return the work folder of a teacher; its ``final`` holds the weights.

    Args:
        params: say how it is trained.
        paths: where it is trained.
        data: where the buckets lie.
        family: the frozen parts.
        name: of the teacher.
        trained: the work folders of those that it may start from.
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
    before = {"init": str(trained[config.init].name)} if config.init != SCRATCH else {}
    dataset = read_bucket(data.bucket(config.bucket), "train")
    key = fingerprint(
        {
            "teacher": config.model_dump(mode="json", exclude_none=True),
            "seed": params.run.seed,
            **before,
            "world": params.data.world,
            "data": dataset._fingerprint,
        }
        | {"family": params.family.model_dump(mode="json")}
    )
    work = paths.work(f"teacher-{name}-{key[:16]}")
    if (work / "final").exists():
        return work
    if config.init == SCRATCH:
        backbone = family.new_backbone(params.run.seed)
    else:
        backbone = family.load_backbone(trained[config.init] / "final")
    backbone.requires_grad_(True)
    if config.adapter_rank is not None:
        rank = config.adapter_rank
        add_student_adapter(family, backbone, rank=rank, alpha=rank, seed=params.run.seed)
    _LOG.info("training teacher %s", name)
    finetune(
        family,
        backbone,
        _batches(params, dataset, family, config),
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


def _score(params: "Params", paths: Paths, data: Paths, report: dict[str, Any]) -> None:
    """Scores every teacher on every capability, its own one at several guidance scales.

    Args:
        params: names them.
        paths: where the teachers lie, and where grids go.
        data: where the buckets lie.
        report: gets what it lacks.
    """
    teachers = Teachers(paths.teachers, params.family.name, list(params.teachers), "cpu")
    for name, backbone in teachers.backbones.items():
        entry = {
            "num_parameters": sum(p.numel() for p in backbone.parameters()),
            "num_updates": params.teachers[name].num_updates,
            "scores": {},
        }
        report["teachers"].setdefault(name, entry)
    with atomic_directory(paths.teachers_images) as folder:
        if paths.teachers_images.exists():
            shutil.copytree(paths.teachers_images, folder, dirs_exist_ok=True)
        for capability, config in params.capabilities.items():
            scores = {name: report["teachers"][name]["scores"] for name in teachers.backbones}
            missing = [name for name, found in scores.items() if capability not in found]
            if not missing:
                continue
            dataset = read_bucket(data.bucket(config.bucket), _SPLIT)
            batch = quick_batch(
                dataset,
                open_world(params.data.world),
                teachers.family,
                params.evaluate.num_samples,
                params.run.seed,
            )
            for name in missing:
                scales = _GUIDANCE if name == config.teacher else (config.guidance,)
                scores[name][capability] = {
                    f"{scale:g}": _scored(params, teachers, batch, name, scale) for scale in scales
                }
            _draw(params, teachers, batch, capability, folder / f"{capability}.png")


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
    columns = {"source": part.sources} if part.sources else {}
    for name, config in params.capabilities.items():
        field = teachers.field(config.teacher, config.guidance)
        label = f"{config.teacher} teacher" + (" (its own)" if name == capability else "")
        columns[label] = part.sample(field, params.evaluate.num_steps, _GRID_ROWS)
    columns["exact target"] = part.targets
    image_grid(columns, part.prompts).save(path)


def _curve(path: Path) -> list[list[float]]:
    """Returns (update, loss, seconds) triples of a training curve, at most fifty."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows = [row for row in rows if "loss" in row]
    step = max(1, len(rows) // 50)
    return [[row["step"], round(row["loss"], 5), row["seconds"]] for row in rows[::step]]
