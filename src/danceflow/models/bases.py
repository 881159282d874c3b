"""The frozen base of a student that is an adapter: its digest, where it lies, and it in memory.

A base is a network and the frozen parts beside it. Its digests are of tensors rounded to float16,
by their names: neither the dtype nor the shards nor the place that they were read from count, so
that a published pipeline and the copy among the teachers are one base.
"""

import collections
import contextlib
import hashlib
import itertools
import json
import logging
import os
import threading
import weakref
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from danceflow.errors import DanceflowError, UsageError, WeightsError
from danceflow.fields import Condition
from danceflow.models.adapters.files import AdapterFile
from danceflow.models.adapters.lora import AdapterField, add_adapter, read_adapter_for
from danceflow.models.families.pipeline_folder import PIPELINE_FILE
from danceflow.models.family import ModelFamily, open_family
from danceflow.models.memory import Memory
from danceflow.models.weights import (
    INDEX_FILE,
    WEIGHTS_FILE,
    holds_network,
    read_json,
    require_finite_tensor,
)
from danceflow.ops.hub import fetch
from danceflow.paths import Paths, find_root

BASES_VARIABLE = "DANCEFLOW_BASES"
"""Environment variable: folders in which bases are looked for, separated as in PATH."""
HUB = "hf://"
"""Begins the name of a base that was on the hub: ``hf://owner/name`` or ``hf://owner/name@rev``."""

FROZEN_FOLDER = "frozen"
BACKBONE_FOLDER = "transformer"
BASE_FOLDER = "base"
ADAPTER_FOLDER = "adapter"
_SHOWN = 12

_LOG = logging.getLogger(__name__)


def base_of_adapter(meta: Mapping[str, Any], name: str) -> str | None:
    """Return the teacher whose network an adapter among the teachers stands on, if one is named.

    Args:
        meta: the teachers' manifest: ``base`` counts for every adapter that ``bases`` leaves out.
        name: of the adapter.
    """
    found: str | None = meta.get("bases", {}).get(name, meta.get("base"))
    return found


@dataclass(frozen=True)
class BaseName:
    """What a package says of its base.

    Attributes:
        network: digest of the network.
        frozen: digest of text encoders, vision encoder and codec.
        num_tensors: of the network; another number is another network without a look inside.
        teacher: its name in a folder of teachers.
        where: where it was: a folder, or a name on the hub that begins with ``hf://``.
    """

    network: str
    frozen: str
    num_tensors: int
    teacher: str
    where: str

    def as_json(self) -> dict[str, Any]:
        """Return it as plain data."""
        return asdict(self)

    @staticmethod
    def of(meta: Mapping[str, Any], place: Path) -> "BaseName":
        """Return what a manifest says.

        Raises:
            WeightsError: it does not say it.
        """
        try:
            return BaseName(**meta["base"])
        except (KeyError, TypeError) as error:
            raise WeightsError(f"{place}: names no base that can be understood: {error}") from error


@dataclass(frozen=True)
class BaseFolder:
    """Where a base lies.

    Attributes:
        frozen: folder of the frozen parts.
        network: folder of the network.
    """

    frozen: Path
    network: Path

    @property
    def num_bytes(self) -> int:
        """Size of its files."""
        return sum(
            file.stat().st_size
            for folder in (self.frozen, self.network)
            for file in folder.rglob("*")
            if file.is_file()
        )


class SharedBase:
    """A base in memory, once for all students that are adapters on it.

    Attributes:
        family: the frozen parts.
        network: the network, with the adapters of all.
        reading: held while the frozen parts read prompts.
    """

    def __init__(self, family: ModelFamily, network: nn.Module) -> None:
        """Join the two."""
        self.family = family
        self.network = network
        self.reading = threading.Lock()
        self._lock = threading.RLock()
        self._numbers = itertools.count()
        self._left: collections.deque[str] = collections.deque()

    def student(self, place: Path) -> "StudentField":
        """Return the field of the adapter in ``place`` on this base.

        Raises:
            WeightsError: it does not fit.
        """
        translate = self.family.translate_adapter
        with self._lock:
            self._drop_left()
            file = read_adapter_for(self.network, place, translate)
            name = f"student_{next(self._numbers)}"
            field = StudentField(self, name, file)
        weakref.finalize(field, self._left.append, name)
        return field

    def call(self, field: AdapterField, z: Tensor, sigma: Tensor, condition: Condition) -> Tensor:
        """Return an adapter's velocity; who else would switch adapters waits."""
        with self._lock:
            self._drop_left()
            return field(z, sigma, condition)

    def _drop_left(self) -> None:
        """Take away adapters whose students are gone; a collector calls at any time, this not."""
        while self._left:
            self.network.delete_adapters(self._left.popleft())  # type: ignore[operator]


class StudentField:
    """The field of a student that is an adapter on a shared base."""

    def __init__(self, base: SharedBase, name: str, file: AdapterFile) -> None:
        """Add the adapter ``file`` to ``base`` as ``name``."""
        _LOG.info("%s", add_adapter(base.network, file, name))
        self.base = base
        self.backbone = base.network
        self.name = name
        self._field = AdapterField(base.family, base.network, name)

    def __call__(self, z_BCHW: Tensor, sigma_B: Tensor, condition: Condition, /) -> Tensor:
        """Return the velocity, [B, C, H, W] float32, without gradient."""
        return self.base.call(self._field, z_BCHW, sigma_B, condition)


_LOADED: "weakref.WeakValueDictionary[Any, SharedBase]" = weakref.WeakValueDictionary()
_LOADING = threading.Lock()


def load_base(family: ModelFamily, folder: Path, memory: Memory) -> nn.Module:
    """Return the frozen network in ``folder`` where and as ``memory`` holds a base for adapters.

    Raises:
        WeightsError: if the weights are missing, damaged or of another shape.
    """
    return memory.load(family, folder, shared=True)


def shared_base(package: Path, meta: Mapping[str, Any], memory: Memory) -> SharedBase:
    """Return the base of a package; one that another student of this process has is that one.

    Args:
        package: folder of the student.
        meta: its manifest.
        memory: how bases are held.

    Raises:
        WeightsError: it is nowhere, or is another one than the package says.
    """
    name = BaseName.of(meta, package)
    settings = package / FROZEN_FOLDER
    told = [read_json(file) for file in sorted(settings.glob("*.json"))]
    told = [{k: v for k, v in item.items() if k != "image_size"} for item in told]
    memory = replace(memory, offload="none", base="float")
    key = (name.network, name.frozen, memory, json.dumps(told, sort_keys=True))
    with _LOADING:
        found = _LOADED.get(key)
        if found is None:
            family, folder = find_base(name, package, meta["family"])
            family.to(memory.device)
            found = _LOADED[key] = SharedBase(family, load_base(family, folder.network, memory))
        return found


def find_base(name: BaseName, package: Path, family: str) -> tuple[ModelFamily, BaseFolder]:
    """Return the frozen parts of a package's base, and where the base lies.

    It lies with the package, among the teachers, in a configured folder, or on the hub.

    Args:
        name: what the package says of it.
        package: folder of the student.
        family: name of its family.

    Raises:
        WeightsError: it is nowhere; the message tells what was looked at and what to do.
    """
    refused: dict[BaseFolder, str] = {}
    try:
        for found in _candidates(name, package):
            if found in refused:
                continue
            try:
                _require_network(found.network, name)
                frozen = open_family(family, found.frozen, package / FROZEN_FOLDER)
                _require_frozen(frozen, name)
            except WeightsError as error:
                refused[found] = str(error)
            else:
                return frozen, found
        advice = _advice(name)
    except WeightsError as error:  # no further place can be looked at
        advice = str(error)
    seen = "; ".join(f"{place.network}: {problem}" for place, problem in refused.items())
    raise WeightsError(
        f"{package}: the student is an adapter on the base {name.network[:_SHOWN]}, which was at "
        f"{name.where} and is not here ({seen or 'no network was found'}). {advice}"
    )


def _advice(name: BaseName) -> str:
    bring = (
        f"Put the folder of its pipeline, or of its teachers, into {BASES_VARIABLE}, or bring it "
        "with `danceflow bring-teachers`"
    )
    if not name.where.startswith(HUB):
        return bring
    return f"What the hub has now is another one: name a revision. {bring}"


def _require_network(network: Path, name: BaseName) -> None:
    """Check that a network is the one that a package names; raises ``WeightsError`` if not."""
    count = sum(1 for _ in _names(network))
    if count != name.num_tensors:
        raise WeightsError(f"another network, of {count} tensors instead of {name.num_tensors}")
    digest = network_digest(network)
    if digest != name.network:
        raise WeightsError(f"another network, {digest[:_SHOWN]}")


def _require_frozen(family: ModelFamily, name: BaseName) -> None:
    """Check that frozen parts are those that a package names; raises ``WeightsError`` if not."""
    digest = frozen_digest(family)
    if digest != name.frozen:
        raise WeightsError(
            "its text encoders or its codec are not those that the student learned with "
            f"({digest[:_SHOWN]}, learned with {name.frozen[:_SHOWN]})"
        )


def _candidates(name: BaseName, package: Path) -> Iterator[BaseFolder]:
    """Yield where a base may lie, the nearest first; the hub is asked last."""
    if holds_network(package / BASE_FOLDER):
        yield BaseFolder(package / FROZEN_FOLDER, package / BASE_FOLDER)
    with contextlib.suppress(UsageError):  # no checkout
        yield from _bases_in(Paths(find_root(Path.cwd())).teachers, name)
    for text in os.environ.get(BASES_VARIABLE, "").split(os.pathsep):
        if text:
            folder = Path(text)
            if not folder.is_dir():
                raise WeightsError(f"{BASES_VARIABLE}: {folder} is no folder")
            yield from _bases_in(folder, name)
            for child in sorted(child for child in folder.iterdir() if child.is_dir()):
                yield from _bases_in(child, name)
    if name.where.startswith(HUB):
        yield from _bases_in(hub_folder(name.where), name)
        return
    where = Path(name.where)
    yield from _bases_in(where, name)
    yield from _bases_in(where.parent, name)


def _bases_in(folder: Path, name: BaseName) -> Iterator[BaseFolder]:
    """Yield the networks in a folder of teachers, of a pipeline or of a student with its base."""
    if (folder / PIPELINE_FILE).is_file() and holds_network(folder / BACKBONE_FOLDER):
        yield BaseFolder(folder, folder / BACKBONE_FOLDER)
    frozen = folder / FROZEN_FOLDER
    if not frozen.is_dir():
        return
    networks = [child for child in folder.iterdir() if holds_network(child) and child != frozen]
    for network in sorted(networks, key=lambda child: (child.name != name.teacher, child.name)):
        yield BaseFolder(frozen, network)


def hub_folder(name: str) -> Path:
    """Return the folder of a pipeline on the hub; it is downloaded where it is not here yet.

    Args:
        name: ``hf://owner/name`` or ``hf://owner/name@revision``.

    Raises:
        WeightsError: it cannot be had.
    """
    try:
        return fetch(name).path
    except DanceflowError as error:
        raise WeightsError(
            f"{error}; the student's base is there: `hf download {_repository(name)}` brings it"
        ) from error


def _repository(name: str) -> str:
    return name.removeprefix(HUB).partition("@")[0]


def network_digest(folder: Path) -> str:
    """Return the SHA-256 of a network's tensors, 64 hexadecimal digits; they are read one by one.

    Input channels at the end that are zero count as absent: a network that was made able to take a
    source is the one that it was made of.

    Raises:
        WeightsError: a file is missing or damaged, or a value is not finite.
    """
    digest = hashlib.sha256()
    with contextlib.ExitStack() as stack:
        files: dict[Path, Any] = {}
        for name, path in sorted(_names(folder)):
            if path not in files:
                files[path] = stack.enter_context(_opened(path))
            value = files[path].get_tensor(name)
            require_finite_tensor(value, name, path)
            _add(digest, name, value)
    return digest.hexdigest()


def frozen_digest(family: ModelFamily) -> str:
    """Return the SHA-256 of a family's frozen parts, as ``network_digest`` of each.

    They must be as they were read: rounded to another dtype they are others.
    """
    digest = hashlib.sha256()
    for part, network in sorted(family.frozen_networks().items()):
        for name, value in sorted(network.state_dict().items()):
            _add(digest, f"{part}/{name}", value)
    return digest.hexdigest()


def num_tensors(folder: Path) -> int:
    """Return how many tensors a network has."""
    return sum(1 for _ in _names(folder))


def _names(folder: Path) -> Iterator[tuple[str, Path]]:
    """Yield the names of a network's tensors, each with the file that holds it."""
    if (folder / INDEX_FILE).is_file():
        shards = set(read_json(folder / INDEX_FILE).get("weight_map", {}).values())
        paths = [folder / shard for shard in sorted(shards)]
    else:
        paths = [folder / WEIGHTS_FILE]
    for path in paths:
        with _opened(path) as file:
            yield from ((name, path) for name in file.keys())  # noqa: SIM118, it is no mapping


def _opened(path: Path) -> Any:
    from safetensors import SafetensorError, safe_open

    try:
        return safe_open(path, "pt")
    except (OSError, SafetensorError) as error:
        raise WeightsError(f"{path}: weights are missing or truncated: {error}") from error


def _add(digest: Any, name: str, value: Tensor) -> None:
    value = value.detach().cpu()
    if value.is_floating_point():
        value = value.to(torch.float16)
        while value.ndim > 1 and value.shape[1] > 1 and not bool(value[:, -1].any()):
            value = value[:, :-1]
    digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
    digest.update(value.contiguous().flatten().view(torch.uint8).numpy())
