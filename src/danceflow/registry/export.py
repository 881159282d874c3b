"""A student exported: its files as other programs load them, and a card that says what they are."""

import logging
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from danceflow.errors import DanceflowError, UsageError, unknown_name
from danceflow.models.steps import steps_of
from danceflow.ops.files import atomic_directory, read_object, sha256
from danceflow.ops.tracking import Store, TrackingSettings, open_store
from danceflow.paths import MANIFEST, Paths, find_root
from danceflow.registry.about import About
from danceflow.registry.card import LIMITS, plain, score_table, steps_table
from danceflow.registry.evidence import current
from danceflow.registry.open import as_uri, fetched, find_entry, is_folder
from danceflow.report.evidence import read_evidence

if TYPE_CHECKING:
    from danceflow.report.evidence import Evidence

CARD = "README.md"
"""Of an exported folder, as the hub shows it."""

_LOG = logging.getLogger(__name__)

_LICENCES = (
    "afl-3.0", "agpl-3.0", "apache-2.0", "artistic-2.0", "bigcode-openrail-m",
    "bigscience-openrail-m", "bsd", "bsd-2-clause", "bsd-3-clause", "bsl-1.0", "cc-by-2.0",
    "cc-by-3.0", "cc-by-4.0", "cc-by-nc-2.0", "cc-by-nc-3.0", "cc-by-nc-4.0", "cc-by-nc-nd-4.0",
    "cc-by-nc-sa-4.0", "cc-by-nd-4.0", "cc-by-sa-3.0", "cc-by-sa-4.0", "cc0-1.0",
    "creativeml-openrail-m", "gpl-2.0", "gpl-3.0", "lgpl-3.0", "mit", "mpl-2.0", "openrail",
    "openrail++", "unlicense",
)  # fmt: skip
"""Words of the hub; it refuses a card with another one. Those it has besides are told by name."""

_ON_BASE = """```python
from diffusers import DiffusionPipeline

pipeline = DiffusionPipeline.from_pretrained({base!r})
pipeline.load_lora_weights("<this folder>")
```"""
_LOADING = {
    "diffusers": """```python
from diffusers import {network}

network = {network}.from_pretrained("<this folder>", subfolder="transformer")
```""",
    "lora": _ON_BASE,
    "comfyui": "Copy the file to ComfyUI's `models/loras`, and load it by the node *Load LoRA* on "
    "the base, with strength 1.",
    "pipeline": """```python
from diffusers import DiffusionPipeline

pipeline = DiffusionPipeline.from_pretrained("<this folder>")
```""",
}
_NO_SOURCES = (
    "The student edits by further input channels, which no stock pipeline has: what is written "
    "for stock pipelines makes pictures from text alone."
)


def export_student(
    source: str, kind: str, out: Path, settings: TrackingSettings | None = None
) -> Path:
    """Return the folder ``out`` with a student in a format that other programs load.

    Args:
        source: a folder, an alias, ``runs:/...`` or ``models:/...``, as ``open_student`` takes it.
        kind: of the formats ``danceflow.models.export.FORMATS``.
        out: a folder that is empty or not there.
        settings: where runs are recorded; None: as the parameters of this checkout say.

    Raises:
        UsageError: there is no such format, or the folder holds something.
        WeightsError: the student is damaged, its base is not here, or the format cannot hold it.
        TrackingError: the store cannot be reached or knows no such student.
    """
    from danceflow.models.export import FORMATS
    from danceflow.models.package import read_manifest

    if kind not in FORMATS:
        raise UsageError(unknown_name("format", kind, FORMATS))
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{out}: holds something already; name a folder that is not there yet")

    def write(package: Path, evidence: "Evidence | None") -> Path:
        with atomic_directory(out) as place:
            FORMATS[kind](package, place)
            text = card(read_manifest(package), kind, place, evidence)
            (place / CARD).write_text(text, encoding="utf-8")
        return out

    if is_folder(source):
        return write(Path(source), _evidence_here(Path(source)))
    settings, uri = as_uri(source, settings)
    store = open_store(settings)
    entry = find_entry(store, uri)
    with fetched(store, entry) as package:
        return write(package, _evidence_of(store, entry.name, entry.version))


def card(meta: Mapping[str, Any], kind: str, place: Path, evidence: "Evidence | None") -> str:
    """Return the model card of what was exported, Markdown with a head for the hub.

    Args:
        meta: the package's manifest.
        kind: the format.
        place: what was written.
        evidence: its scores; None: nobody evaluated it.
    """
    about = About.of(meta)
    if Path(about.where).is_absolute():  # of this machine, which is nobody's business
        about = replace(about, where=Path(about.where).name)
    sizes = ", ".join(f"{width} x {height}" for height, width in meta.get("image_sizes", []))
    scores = "No scores of it are known here."
    if evidence is not None:
        scores = score_table(evidence) + steps_table(evidence)
    origin = "\n".join(
        f"- {plain(line)}"
        for line in (
            *about.lines(),
            f"Family: {meta['family']}; method: {meta.get('method', 'not told')}",
            f"Updates: {meta.get('num_updates', 'not told')}",
        )
    )
    limits = [*LIMITS]
    if "adapter/stock/" in "".join(meta["files"]):
        limits.append(_NO_SOURCES)
    return (
        f"---\n{_head(about, kind)}---\n\n# A student that does what several teachers do\n\n"
        f"Ask it for {_steps(meta)} steps, with guidance 1: "
        f"its teachers' guidance is in it. {_grid(meta, kind)}"
        f"Sizes in pixels: {sizes or 'not told'}.\n\n"
        f"## Scores\n\n{scores}\n\n## Where it comes from\n\n{origin}\n\n"
        f"## How to load it\n\n{_loading(kind, about, place)}\n\n"
        "## Limits\n\n" + "\n".join(f"- {line}" for line in limits) + "\n"
    )


def _steps(meta: Mapping[str, Any]) -> str:
    if "num_steps" not in meta:
        return "as many as its teachers"
    generate, edit = steps_of(meta, is_edit=False), steps_of(meta, is_edit=True)
    return f"{generate}" if generate == edit else f"{generate} (edits: {edit})"


def _grid(meta: Mapping[str, Any], kind: str) -> str:
    """Return what is to be set where the student's sigma grid is not its base's."""
    if meta.get("shift") is None or kind == "pipeline":
        return ""
    return f"Set the shift of its scheduler to {meta['shift']:g}: it was trained on that grid. "


def _head(about: About, kind: str) -> str:
    """Return what the hub reads of a card, lines of YAML."""
    lines = ["library_name: diffusers", "tags: [danceflow, on-policy-distillation]"]
    if about.where.startswith("hf://"):
        lines.append(f"base_model: {_hub_name(about.where)}")
    if about.licence is not None and about.licence.lower() in _LICENCES:
        lines.append(f"license: {about.licence.lower()}")
    elif about.licence is not None:
        word = re.sub(r"[^a-z0-9.]+", "-", about.licence.lower()).strip("-")
        lines += ["license: other", f'license_name: "{word}"']
    if kind in ("lora", "comfyui"):
        lines[1] = "tags: [danceflow, on-policy-distillation, lora]"
    return "".join(f"{line}\n" for line in lines)


def _loading(kind: str, about: About, place: Path) -> str:
    """Return how what was exported is loaded."""
    from danceflow.models.weights import CONFIG_FILE, read_json

    config = place / "transformer" / CONFIG_FILE
    network = read_json(config)["_class_name"] if config.is_file() else ""
    base = _hub_name(about.where) if about.where.startswith("hf://") else "<the base>"
    return _LOADING[kind].format(network=network, base=base)


def _hub_name(where: str) -> str:
    return where.removeprefix("hf://").partition("@")[0]


def _evidence_here(folder: Path) -> "Evidence | None":
    """Return the scores of this checkout's student; None: it is another, or was not evaluated."""
    from danceflow.evaluate.records import read_evaluation

    try:
        paths = Paths(find_root(Path.cwd()))
        if folder.resolve() != paths.student.resolve():
            return None
        digest = sha256(paths.student / MANIFEST)
        names = sorted(file.stem for file in paths.evaluations.glob("*.json"))
        if any(read_evaluation(paths.evaluation(name), name).student != digest for name in names):
            _LOG.warning(
                "the evaluation here does not say that it is of this student; no scores are told"
            )
            return None
        return read_evidence(paths, names, _summary(paths)) if names else None
    except (DanceflowError, OSError) as error:
        _LOG.warning("the card tells no scores: %s", error)
        return None


def _summary(paths: Paths) -> Mapping[str, Any]:
    """Return what the report tells, nothing where it was not made."""
    return read_object(paths.summary, "run the stage report") if paths.summary.is_file() else {}


def _evidence_of(store: Store, name: str, version: int) -> "Evidence | None":
    """Return the scores that a version was registered with; None: it has none that can be read."""
    try:
        return current(store, store.client.get_model_version(name, str(version)))
    except DanceflowError as error:
        _LOG.warning("the card tells no scores: %s", error)
        return None
