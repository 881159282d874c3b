"""Teachers that were trained elsewhere: a stock pipeline's folder, and LoRAs or networks for it."""

import contextlib
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from danceflow.errors import WeightsError, unknown_name
from danceflow.models.adapters.lora import (
    add_adapter,
    merged_network,
    read_adapter_for,
    report_of,
    save_adapter,
)
from danceflow.models.bases import frozen_digest, network_digest
from danceflow.models.family import open_family
from danceflow.models.package import BACKBONE_FOLDER, FROZEN_FOLDER, write_manifest
from danceflow.models.weights import holds_network, read_metadata
from danceflow.ops.files import atomic_directory

BASE = "base"
"""The teacher that is the pipeline's own network."""

_LOG = logging.getLogger(__name__)


def bring_teachers(
    family_name: str,
    pipeline: Path,
    teachers: Mapping[str, Path],
    folder: Path,
    *,
    edits: bool,
    origin: str | None = None,
    licences: Mapping[str, str] | None = None,
) -> None:
    """Write the folder of teachers that the stages read, after everything was found to fit.

    The pipeline's own network is the teacher ``base`` and the base of every adapter; a teacher
    with a network of its own is kept whole. So is an adapter that is no small product of factors
    (DoRA; a LoKr of whole matrices), merged into a copy of the base.

    Args:
        family_name: of the pipeline.
        pipeline: folder of a stock pipeline.
        teachers: a safetensors file or a folder by name: an adapter, a transformer or a pipeline.
        folder: where to.
        edits: whether some of them edit; a network that only creates is then made able to.
        origin: where the pipeline comes from, as students will name it: a folder, or a name on the
            hub that begins with ``hf://``; ``None``: the folder.
        licences: of teachers and of ``base`` by name; what is not named is read beside the weights.

    Raises:
        WeightsError: if something is missing, does not fit, or a name is taken.
    """
    family = open_family(family_name, pipeline)
    if edits:
        family = family.editing()
    base = family.load_backbone(pipeline / BACKBONE_FOLDER)
    known = {BASE: pipeline, **teachers}
    if odd := set(licences or {}) - set(known):
        raise WeightsError(unknown_name("teacher with a licence", min(odd), known))
    if taken := {BASE, FROZEN_FOLDER} & set(teachers):
        raise WeightsError(f"no teacher that is brought along can be called {min(taken)!r}")
    with atomic_directory(folder) as place:
        family.save_frozen(place / FROZEN_FOLDER)
        family.save_backbone(base, place / BASE)
        for name, source in teachers.items():
            if (network := _network(source)) is not None:
                family.save_backbone(family.load_backbone(network), place / name)
                _LOG.info("teacher %r: a network of its own", name)
                continue
            file = read_adapter_for(base, source, family.translate_adapter)
            if file.needs_network:
                family.save_backbone(merged_network(base, file), place / name)
                report = report_of(base, file, name)
                _LOG.info("%s, merged into a network of its own", report)
                continue
            _LOG.info("%s", add_adapter(base, file, name))
            save_adapter(base, place / name, name)
        networks = [name for name in known if holds_network(place / name)]
        meta = {
            "family": family.name,
            "teachers": list(known),
            "base": BASE,
            "origin": origin or str(pipeline.resolve()),
            "digests": {
                FROZEN_FOLDER: frozen_digest(family),
                **{name: network_digest(place / name) for name in networks},
            },
            "licences": {
                name: (licences or {}).get(name) or stated_licence(source)
                for name, source in known.items()
            },
        }
        write_manifest(place, meta)


def stated_licence(source: Path) -> str | None:
    """Return the licence that is stated beside weights, ``None`` where none is.

    It stands in the head of the model card ``README.md``, or in the metadata of an adapter's file.
    The card of a pipeline lies beside the folder of its network.
    """
    from huggingface_hub import metadata_load

    folder = source if source.is_dir() else source.parent
    folder = folder.parent if folder.name == BACKBONE_FOLDER else folder
    card: dict[str, Any] | None = None
    if (folder / "README.md").is_file():
        with contextlib.suppress(Exception):  # a head that is no YAML states nothing
            card = metadata_load(folder / "README.md")
    for key in ("license_name", "license"):
        if isinstance(found := (card or {}).get(key), str) and found != "other":
            return found
    files = [source] if source.is_file() else sorted(source.glob("*.safetensors"))
    for file in files:
        metadata = read_metadata(file)
        if found := metadata.get("modelspec.license") or metadata.get("license"):
            return found
    return None


def _network(source: Path) -> Path | None:
    """Return the folder of a transformer in ``source``, or ``None`` if it is an adapter's."""
    for folder in (source / BACKBONE_FOLDER, source):
        if holds_network(folder):
            return folder
    return None
