"""Stage ``teachers`` (frozen): trains the teachers on the prepared data and scores them.

The text encoder learns to read first, then every teacher is trained on its bucket, from scratch or
from another teacher, as a whole or as a LoRA adapter. An interrupted stage goes on at its last
checkpoint. The teachers are scored on the validation split of every capability, so that the test
split stays unseen. Teachers that the parameters do not name, such as one that a recipe added, stay.
"""

import json
import logging
import shutil
import time
from collections.abc import Container, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from danceflow.data.buckets import VALIDATION
from danceflow.errors import WeightsError
from danceflow.models.bases import base_of_adapter
from danceflow.models.family import open_family
from danceflow.models.package import FROZEN_FOLDER, read_manifest, write_manifest
from danceflow.models.weights import holds_network, read_json
from danceflow.ops import keys
from danceflow.ops.files import atomic_directory, fingerprint, sha256, write_json
from danceflow.ops.group import current
from danceflow.params.rules import require_trained_here
from danceflow.paths import MANIFEST, Paths
from danceflow.train.teachers.scores import score_teachers
from danceflow.train.teachers.training import text_encoder, train_teacher
from danceflow.worlds import prepare

if TYPE_CHECKING:
    from danceflow.params.sections import Params

_TOLD = ("origin", "digests", "licences")
"""What the manifest of teachers that were brought along tells of them."""

_LOG = logging.getLogger(__name__)


def run(params: "Params", paths: Paths) -> None:
    """Write ``models/teachers``, ``reports/teachers`` and ``reports/teachers.json``.

    Raises:
        ConfigError: if a teacher was brought along, or starts from one that is not trained before.
        WeightsError: if a teacher that is to stay is damaged.
        TrainingError: if a training cannot go on.
    """
    started = time.monotonic()
    require_trained_here(params, str(paths.params))
    with keys.training_teachers(paths):
        before, others = _others(params, paths)  # told of damage before hours of training
        frozen = text_encoder(params, paths)
        family = open_family(params.family.name, frozen).to(params.run.device)
        family.frozen_networks()  # a damaged one is told before hours of training
        trained: dict[str, Path] = {}
        for name in params.teachers:
            trained[name] = train_teacher(params, paths, paths, family, name, trained, frozen.name)
        group = current()
        if group.is_main:
            _write(params, paths, frozen, trained | others, before, kept=others)
            _tell_of_others(others, before, read_manifest(paths.teachers)["files"])
            with atomic_directory(paths.teachers_images):
                pass  # pictures of the teachers before these
        group.wait()
        report: dict[str, Any] = {"split": VALIDATION, "num_steps": params.evaluate.num_steps}
        report["teachers"] = {}
        score_teachers(params, paths, paths, report)
        for name, place in trained.items():
            report["teachers"][name]["curve"] = _curve(place / "curve.jsonl")
    if not group.is_main:
        return
    report["seconds"] = round(time.monotonic() - started, 1)
    write_json(paths.teachers_report, report)


def add(params: "Params", paths: Paths) -> list[str]:
    """Return the teachers of ``params`` that ``models/teachers`` lacked; they are in it now.

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
    with keys.training_teachers(paths):
        return _add(params, paths, manifest)


def _add(params: "Params", paths: Paths, manifest: Mapping[str, Any]) -> list[str]:
    frozen = paths.teachers / FROZEN_FOLDER
    family = open_family(params.family.name, frozen).to(params.run.device)
    parts = {k: v for k, v in manifest["files"].items() if k.startswith(f"{FROZEN_FOLDER}/")}
    trained = {name: _kept(paths, name, manifest) for name in manifest["teachers"]}
    added = [name for name in params.teachers if name not in trained]
    data = Paths(keys.teachers_data(params).touched(paths))
    if params.data.input is not None or not data.data_report.exists():  # rows may have changed
        prepare.run(_with_input_of(params, paths), data)
    stands_for = fingerprint(parts)
    for name in added:
        trained[name] = train_teacher(params, paths, data, family, name, trained, stands_for)
    if added:
        told = {key: manifest[key] for key in _TOLD if key in manifest}
        _write(params, paths, frozen, trained, manifest, kept=manifest["teachers"], told=told)
    report = json.loads(paths.teachers_report.read_text())
    score_teachers(params, paths, data, report)
    for name in added:
        report["teachers"][name]["curve"] = _curve(trained[name] / "curve.jsonl")
    write_json(paths.teachers_report, report)
    return added


def _with_input_of(params: "Params", paths: Paths) -> "Params":
    """Return the parameters with the rows of a checkout, wherever they are prepared."""
    if params.data.input is None:
        return params
    place = paths.root / params.data.input.path
    if params.data.source == "dataset" and not place.exists():  # it is known by name
        return params
    there = params.data.input.model_copy(update={"path": str(place)})
    return params.model_copy(update={"data": params.data.model_copy(update={"input": there})})


def _kept(paths: Paths, name: str, manifest: Mapping[str, Any]) -> Path:
    """Return a work folder whose ``final`` is a copy of a teacher that is there already."""
    files = {file: sha for file, sha in manifest["files"].items() if file.startswith(f"{name}/")}
    work = keys.kept_teacher(name, files).touched(paths)
    if not (work / "final").exists():
        with atomic_directory(work / "final") as folder:
            shutil.copytree(paths.teacher(name), folder, dirs_exist_ok=True)
    return work


def _others(params: "Params", paths: Paths) -> tuple[Mapping[str, Any], dict[str, Path]]:
    """Return the manifest of ``models/teachers`` and what it holds beside the parameters' teachers.

    Of the latter the work folder that holds a copy, by name. Teachers of another family do not
    stay: no folder holds two.
    """
    if not (paths.teachers / MANIFEST).is_file():
        return {}, {}
    before = read_json(paths.teachers / MANIFEST)
    names = [name for name in before.get("teachers", ()) if name not in params.teachers]
    if names and before.get("family") != params.family.name:
        _LOG.warning("of family %s, and so removed: %s", before.get("family"), ", ".join(names))
        return {}, {}
    for file, digest in before.get("files", {}).items():
        place = paths.teachers / file
        if file.split("/")[0] in names and not (place.is_file() and sha256(place) == digest):
            raise WeightsError(f"{place}: is damaged, and nothing trains it; restore it (git, dvc)")
    return before, {name: _kept(paths, name, before) for name in names}


def _tell_of_others(
    others: Mapping[str, Path], before: Mapping[str, Any], after: Mapping[str, str]
) -> None:
    """Say which teachers stayed, and which of them stand on other weights than they learned on."""
    if not others:
        return
    _LOG.info(
        "not named by the parameters, and kept: %s (`danceflow teachers --recipe` scores them)",
        ", ".join(others),
    )
    bases = {base_of_adapter(before, name) for name in others} - {None}
    ground = [f"{FROZEN_FOLDER}/", *(f"{base}/" for base in bases)]
    moved = [
        file
        for file, digest in before["files"].items()
        if file.startswith(tuple(ground)) and after.get(file) != digest
    ]
    if moved:
        _LOG.warning(
            "%s learned beside another %s: train them again with their recipe, in a checkout "
            "whose models/teachers lacks them, before they are used",
            ", ".join(others),
            moved[0],
        )


def _write(
    params: "Params",
    paths: Paths,
    frozen: Path,
    trained: Mapping[str, Path],
    before: Mapping[str, Any],
    *,
    kept: Container[str],
    told: Mapping[str, Any] | None = None,
) -> None:
    """Write ``models/teachers``: frozen parts, every teacher's weights, the manifest.

    Args:
        params: all sections.
        paths: of the checkout.
        frozen: the parts that all teachers share.
        trained: by name, whose ``final`` holds the weights.
        before: the manifest that is replaced; it names the base of adapters that stay.
        kept: the teachers that stay.
        told: what else it says of teachers that all stay.
    """
    bases = {
        name: base_of_adapter(before, name) if name in kept else params.teachers[name].init
        for name, place in trained.items()
        if not holds_network(place / "final")
    }
    base = before.get("base", next(iter(bases.values()), None))
    meta = {**(told or {}), "family": params.family.name, "teachers": list(trained)}
    if base is not None:
        meta["base"] = base
    if further := {name: found for name, found in bases.items() if found != base}:
        meta["bases"] = further
    with atomic_directory(paths.teachers) as folder:
        shutil.copytree(frozen, folder / FROZEN_FOLDER)
        for name, place in trained.items():
            shutil.copytree(place / "final", folder / name)
        write_manifest(folder, meta)


def _curve(path: Path) -> list[list[float]]:
    """Return (update, loss, seconds) triples of a training curve, at most fifty."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows = [row for row in rows if "loss" in row]
    step = max(1, len(rows) // 50)
    return [[row["step"], round(row["loss"], 5), row["seconds"]] for row in rows[::step]]
