"""The teachers of a run in memory, around one set of frozen parts."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from danceflow.errors import WeightsError
from danceflow.fields import GuidedField, VelocityField
from danceflow.models.adapters.files import AdapterFile, merged_pairs, unscaled
from danceflow.models.adapters.lora import (
    AdapterField,
    AdapterReport,
    add_adapter,
    plain_copy,
    read_adapter_for,
)
from danceflow.models.bases import FROZEN_FOLDER, base_of_adapter, load_base
from danceflow.models.family import open_family
from danceflow.models.memory import DTYPES, Memory
from danceflow.models.package import read_manifest
from danceflow.models.quantised import is_quantised
from danceflow.models.weights import holds_network
from danceflow.ops.files import sha256
from danceflow.paths import MANIFEST

_LOG = logging.getLogger(__name__)

_AVERAGE = "_average"


class Teachers:
    """The frozen teachers of a run.

    A teacher's folder holds a whole network, or an adapter on the network that the manifest calls
    its base. That base is in memory once, for all its adapters and the student's.

    Attributes:
        folder: that they were read from.
        family: the frozen parts.
        digest: SHA-256 of the manifest, by which a student's manifest names its teachers.
        base: name of the teacher whose network adapters are on, if there are any.
        shared: that network, with its adapters.
        backbones: every teacher's network by name; that of an adapter is ``shared``.
        reports: what each adapter changes.
    """

    def __init__(
        self, folder: Path, family_name: str, names: Sequence[str], memory: Memory | str
    ) -> None:
        """Load the teachers ``names`` from ``folder``.

        Args:
            folder: with a manifest.
            family_name: the family that the parameters ask for.
            names: of the teachers.
            memory: how they are held; a device alone is float32 there.

        Raises:
            WeightsError: if a teacher is missing or its files are not the recorded ones, or if
                adapters stand on several bases.
        """
        self.folder = folder
        self.meta = read_manifest(folder)
        self.digest = sha256(folder / MANIFEST)
        if self.meta["family"] != family_name:
            raise WeightsError(
                f"{folder}: the teachers are of family {self.meta['family']!r}, "
                f"params.yaml asks for {family_name!r}"
            )
        self.memory = Memory(memory) if isinstance(memory, str) else memory
        self.family = open_family(family_name, folder / FROZEN_FOLDER)
        self.family.to(self.memory.device, DTYPES[self.memory.dtype])
        self.base = self._base_of(names)
        self.shared: nn.Module | None = None
        self.backbones: dict[str, nn.Module] = {}
        self.reports: dict[str, AdapterReport] = {}
        self._files: dict[str, AdapterFile] = {}
        for name in names:
            self.backbones[name] = self._load(folder, name)

    def _base_of(self, names: Sequence[str]) -> str | None:
        """Return the base of the adapters among ``names``; without one, that of the folder."""
        bases: dict[str | None, str] = {}
        for name in names:
            if name not in self.meta["teachers"]:
                known = ", ".join(self.meta["teachers"])
                raise WeightsError(f"{self.folder}: there is no teacher {name!r}; known: {known}")
            if not holds_network(self.folder / name):
                bases.setdefault(base_of_adapter(self.meta, name), name)
        if len(bases) > 1:
            found = ", ".join(f"{name} on {base}" for base, name in bases.items())
            raise WeightsError(f"{self.folder}: adapters stand on one network, here {found}")
        return next(iter(bases), self.meta.get("base"))

    def _load(self, folder: Path, name: str) -> nn.Module:
        """Return a teacher's network; an adapter joins the shared one."""
        is_adapter = name != self.base and not holds_network(folder / name)
        if not is_adapter and name != self.base:
            return self.memory.load(self.family, folder / name, waits=True)
        if self.shared is None:
            if self.base is None:
                raise WeightsError(
                    f"{folder / name}: holds an adapter, but {MANIFEST} names no base for it"
                )
            self.shared = load_base(self.family, folder / self.base, self.memory)
        if is_adapter:
            translate = self.family.translate_adapter
            self._files[name] = read_adapter_for(self.shared, folder / name, translate)
            self.reports[name] = add_adapter(self.shared, self._files[name], name)
            _LOG.info("%s", self.reports[name])
        return self.shared

    def field(self, name: str, guidance: float) -> GuidedField:
        """Return the teacher's field with classifier-free guidance of scale ``guidance``."""
        backbone = self.backbones[name]
        if backbone is self.shared:
            adapter = name if name in self._files else None
            field: VelocityField = AdapterField(self.family, backbone, adapter)
        else:
            field = self.memory.field(self.family.field(backbone), backbone, waits=True)
        return self.family.guided(field, guidance)

    def shares_base(self, weights: Mapping[str, float]) -> bool:
        """Return whether all teachers of ``weights`` are the base or adapters on it."""
        return all(self.backbones.get(name) is self.shared is not None for name in weights)

    def base_of(self, weights: Mapping[str, float]) -> str | None:
        """Return the teacher whose network an adapter is on that starts as an average of teachers.

        Args:
            weights: share of each teacher.

        Returns:
            Its name; ``None``: the average of several networks, which is none of theirs.
        """
        if self.shares_base(weights):
            return self.base
        name, *others = weights
        return None if others else name

    def base_network(self, name: str) -> nn.Module | None:
        """Return a teacher's network that is loaded and stays on the device, else ``None``."""
        if name == self.base:
            return self.shared
        return self.backbones.get(name) if self.memory.offload == "none" else None

    def average_field(self, weights: Mapping[str, float], guidance: float) -> GuidedField:
        """Return the field of the weighted average of teachers, without a further network.

        Of several teachers it is one more adapter on the base, wide enough for all of theirs.

        Args:
            weights: share of each teacher: one, or several that share the base.
            guidance: scale of classifier-free guidance.

        Raises:
            WeightsError: for an unknown teacher or weights that sum to 0.
        """
        name, *others = self._shares(weights)
        if not others:
            return self.field(name, guidance)
        assert self.shared is not None
        pairs = self.merged_adapters(weights, rank=None)
        add_adapter(self.shared, unscaled(pairs, "average"), _AVERAGE)
        return self.family.guided(AdapterField(self.family, self.shared, _AVERAGE), guidance)

    def merged_adapters(
        self, weights: Mapping[str, float], rank: int | None
    ) -> dict[str, tuple[Tensor, Tensor]]:
        """Return factors of the weighted average of teachers that share the base.

        Args:
            weights: share of each teacher; they are normalised to sum to 1, and the base's own
                share holds the others back.
            rank: width of the factors; what does not fit is told in the log. ``None``: all fits.

        Raises:
            WeightsError: for an unknown teacher or weights that sum to 0.
        """
        shares = self._shares(weights)
        used = [(self._files[name], share) for name, share in shares.items() if name in self._files]
        pairs, kept = merged_pairs(used, rank)
        if kept < 1:
            _LOG.warning(
                "rank %d holds %.1f %% of the start %s; a higher lora_rank holds all of it",
                rank,
                100 * kept,
                dict(weights),
            )
        return pairs

    def merged(self, weights: Mapping[str, float]) -> dict[str, Tensor]:
        """Return the weighted average of teachers' parameters, a state dict in main memory.

        Args:
            weights: share of each teacher; they are normalised to sum to 1.

        Raises:
            WeightsError: for an unknown teacher or weights that sum to 0.
        """
        shares = self._shares(weights)
        states = {name: self._state(name) for name in shares}
        return {
            key: torch.stack([states[n][key].cpu() * share for n, share in shares.items()]).sum(0)
            for key in next(iter(states.values()))
        }

    def _shares(self, weights: Mapping[str, float]) -> dict[str, float]:
        total = sum(weights.values())
        if total <= 0 or not set(weights) <= set(self.backbones):
            raise WeightsError(f"merge weights {dict(weights)} do not fit {list(self.backbones)}")
        return {name: weight / total for name, weight in weights.items()}

    def _state(self, name: str) -> dict[str, Tensor]:
        """Return a teacher's own weights under the names of a network without adapters."""
        backbone = self.backbones[name]
        if backbone is not self.shared:
            return backbone.state_dict()
        if is_quantised(backbone):
            return self._read_state(name)
        if not self._files:
            return backbone.state_dict()
        return plain_copy(backbone, name if name in self._files else None).state_dict()

    def read_base(self) -> nn.Module:
        """Return the network that adapters are on, as float32 from its file, without adapters."""
        assert self.base is not None
        return self.family.load_backbone(self.folder / self.base)

    def _read_state(self, name: str) -> dict[str, Tensor]:
        """Return the same from the files: a base of fewer bits is no start."""
        backbone = self.read_base()
        if name not in self._files:
            return backbone.state_dict()
        add_adapter(backbone, self._files[name], name)
        return plain_copy(backbone, name).state_dict()
