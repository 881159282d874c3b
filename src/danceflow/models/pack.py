"""A student that is an adapter, written: the adapter, and its base by name or packed along."""

import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from danceflow.models.bases import (
    ADAPTER_FOLDER,
    BASE_FOLDER,
    FROZEN_FOLDER,
    BaseFolder,
    BaseName,
    frozen_digest,
    network_digest,
    num_tensors,
)
from danceflow.models.family import ModelFamily, open_family
from danceflow.models.package import write_manifest
from danceflow.models.start import float_base
from danceflow.models.teachers import Teachers

PACKED_BYTES = 512 << 20
"""A base whose files are smaller goes along with its student."""

_LOG = logging.getLogger(__name__)


def save_adapter_package(
    folder: Path,
    family: ModelFamily,
    backbone: nn.Module,
    teachers: Teachers,
    shares: Mapping[str, float],
    meta: Mapping[str, Any],
) -> None:
    """Write a student that is an adapter to the empty ``folder``.

    Its base is a network among the teachers. It goes along where its files have less than
    ``PACKED_BYTES``, or where it is an average of networks, which lies nowhere else.

    Args:
        folder: where to.
        family: of the student.
        backbone: the base with the student's adapter.
        teachers: that it was distilled from.
        shares: of each teacher in its start.
        meta: how it was made.

    Raises:
        WeightsError: if a weight cannot be stored.
    """
    family.export_adapter(backbone, folder / ADAPTER_FOLDER)
    teacher = teachers.base_of(shares)
    found = BaseFolder(teachers.folder / FROZEN_FOLDER, teachers.folder / (teacher or BASE_FOLDER))
    if teacher is None:
        family.save_backbone(float_base(teachers, shares), folder / BASE_FOLDER)
        found = BaseFolder(folder / FROZEN_FOLDER, folder / BASE_FOLDER)
    elif found.num_bytes < PACKED_BYTES:
        shutil.copytree(found.network, folder / BASE_FOLDER)
    if (folder / BASE_FOLDER).is_dir():
        family.save_frozen(folder / FROZEN_FOLDER)
    else:
        family.save_settings(folder / FROZEN_FOLDER)
        _LOG.info("the student's base, %s, does not go along", found.network)
    name = _name_of(teachers, teacher, found)
    write_manifest(folder, {**meta, "family": family.name, "base": name.as_json()})


def _name_of(teachers: Teachers, teacher: str | None, found: BaseFolder) -> BaseName:
    """Return what the package says of its base; digests that the teachers' manifest has count."""
    known: Mapping[str, str] = teachers.meta.get("digests", {})
    frozen = known.get(FROZEN_FOLDER)
    if frozen is None:
        # Read anew: those in memory may have been rounded to another dtype.
        frozen = frozen_digest(open_family(teachers.family.name, teachers.folder / FROZEN_FOLDER))
    where = f"models/teachers/{teacher}" if teacher else "the student itself"
    if teacher is not None and teacher == teachers.meta.get("base"):
        where = teachers.meta.get("origin", where)
    return BaseName(
        network=known.get(teacher or "") or network_digest(found.network),
        frozen=frozen,
        num_tensors=num_tensors(found.network),
        teacher=teacher or "",
        where=where,
    )
