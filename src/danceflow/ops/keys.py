"""What decides a result: the one place that names work folders, by parameters, inputs *and code*.

A work folder holds the rolling state of one piece of work, or a result that others take over. Its
name stands for everything that decides what lies in it, so that work that is found was done from
the same parameters, from the same inputs, by the same code; anything else has another name. The
code is what the piece's own module reaches (``danceflow.ops.code``), a part of the stage's deps.

What a judge answered is no work of this code and costs money: it is kept by question
(``Paths.judge_answers``), whatever the code, and ``danceflow clean`` leaves it.
"""

import contextlib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from danceflow.ops.code import PACKAGE, SOURCE, code_digest, digest_of
from danceflow.ops.files import exclusive, fingerprint
from danceflow.ops.group import current
from danceflow.params.sections import RUN_KEYS

if TYPE_CHECKING:
    from danceflow.params.sections import CapabilityParams, DataParams, Params
    from danceflow.paths import Paths

# Where each piece of work begins; what it reaches from there is its code.
_MODULES = {
    "prepare": "danceflow.worlds.prepare",
    "cache": "danceflow.data.cache",
    "distill": "danceflow.train.distill.stage",
    "evaluation": "danceflow.evaluate.stage",
    "text-encoder": "danceflow.train.teachers.training",
    "teacher": "danceflow.train.teachers.training",
    "teachers-data": "danceflow.worlds.prepare",
}
# The stage that trains teachers needs the folders of all of them at its end: one lock for all.
_TEACHERS = ("text-encoder-", "teacher-", "teachers-data-")
_NAME = re.compile(rf"({'|'.join(_MODULES)})-(?:.+-)?[0-9a-f]{{16}}")


@dataclass(frozen=True)
class Key:
    """What one piece of work is called.

    Attributes:
        name: what it is, such as ``cache-t2i``.
        digest: 16 hexadecimal digits of all that decides it.
    """

    name: str
    digest: str

    def folder(self, paths: "Paths") -> Path:
        """Return its work folder, which need not exist."""
        return paths.work(f"{self.name}-{self.digest}")

    def touched(self, paths: "Paths") -> Path:
        """Return its work folder, made where it is missing and used as of now."""
        folder = self.folder(paths)
        folder.mkdir(parents=True, exist_ok=True)
        os.utime(folder)
        return folder

    @contextlib.contextmanager
    def working(self, paths: "Paths") -> Iterator[Path]:
        """Give its work folder for these processes alone; who comes second waits."""
        with _alone_in(guard_of(self.folder(paths))):
            yield self.touched(paths)


@contextlib.contextmanager
def training_teachers(paths: "Paths") -> Iterator[None]:
    """Keep other processes out of the work on teachers, all of it, within the block."""
    with _alone_in(guard_of(paths.work("teacher-"))):
        yield


@contextlib.contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Keep others out of a folder within the block; of a group the main process does it for all."""
    group = current()
    with exclusive(folder) if group.is_main else contextlib.nullcontext():
        group.wait()
        yield
        group.wait()


def is_work(name: str) -> bool:
    """Return whether a folder's name is one that this module gives, or gave."""
    return _NAME.fullmatch(name) is not None


def guard_of(folder: Path) -> Path:
    """Return the folder whose lock keeps others out of a work folder: itself or ``teachers``."""
    return folder.with_name("teachers") if folder.name.startswith(_TEACHERS) else folder


def prepared(data: "DataParams", source: str) -> Key:
    """Return the key of the checked parts of a user's rows.

    Args:
        data: the ``data`` section.
        source: digest of the rows.
    """
    return _key("prepare", {"data": data.model_dump(mode="json"), "source": source})


def cached(
    params: "Params",
    name: str,
    config: "CapabilityParams",
    rows: str,
    validation: str,
    teachers: str,
) -> Key:
    """Return the key of what is computed once about a capability.

    Args:
        params: all sections.
        name: of the capability.
        config: its section, whose weight is a matter of the training.
        rows: digest of its training rows.
        validation: digest of the rows that score a training.
        teachers: digest of the teachers' manifest.
    """
    content = {
        "params": params.select((*RUN_KEYS, "family", "cache")),
        "capability": config.model_dump(mode="json", exclude={"weight"}),
        "data": [rows, validation],
        "teachers": teachers,
    }
    return _key("cache", content, name)


def trained(
    params: "Params", teachers: str, caches: Mapping[str, str], validation: Mapping[str, str]
) -> Key:
    """Return the key of a student's training, its curves and its pictures.

    ``evaluate.num_steps`` is left out: it decides no weight, so a student for another number of
    steps is packaged anew and not trained anew. Every score of the curves names the number it was
    measured with.

    Args:
        params: all sections.
        teachers: digest of the teachers' manifest.
        caches: digest of every capability's cache.
        validation: digest of every capability's validation rows.
    """
    content = {
        "params": params.select((*RUN_KEYS, "family", "capabilities", "distill")),
        "teachers": teachers,
        "caches": dict(caches),
        "validation": dict(validation),
    }
    return _key("distill", content)


def answered(content: Mapping[str, Any]) -> Key:
    """Return the key of a field's answers to the test rows, scored.

    Args:
        content: what decides them beside the code, evaluators included.
    """
    return _key("evaluation", content)


def evaluation_code(root: Path) -> str:
    """Return the digest of all code that decides what a checkout asks, answers and scores.

    Args:
        root: the checkout; one without code of its own runs this process's.
    """
    source = root / "src"
    if not (source / PACKAGE).is_dir() or source.resolve() == SOURCE:
        return code_digest(_MODULES["evaluation"])
    return digest_of(source, _MODULES["evaluation"])


def text_encoder(params: "Params", prompts: Sequence[str]) -> Key:
    """Return the key of a text encoder that is trained here.

    Args:
        params: all sections.
        prompts: the training prompts of all buckets.
    """
    content = {
        "params": params.select((*RUN_KEYS, "family", "data.world")),
        "prompts": list(prompts),
    }
    return _key("text-encoder", content)


def teacher(params: "Params", name: str, frozen: str, init: str | None, rows: str) -> Key:
    """Return the key of a teacher's training.

    Args:
        params: all sections.
        name: of the teacher.
        frozen: name of the work that its frozen parts, which read the prompts, come from.
        init: name of the work that it starts from; None: from scratch.
        rows: digest of its bucket's training rows.
    """
    content = {
        "teacher": params.teachers[name].model_dump(mode="json", exclude_none=True),
        "params": params.select((*RUN_KEYS, "family", "data.world")),
        "frozen": frozen,
        "init": init,
        "rows": rows,
    }
    return _key("teacher", content, name)


def kept_teacher(name: str, files: Mapping[str, str]) -> Key:
    """Return the key of a copy of a teacher that is there already, which no code decides.

    Args:
        name: of the teacher.
        files: digest of each of its files.
    """
    return Key(f"teacher-{name}-kept", fingerprint(dict(files)))


def teachers_data(params: "Params") -> Key:
    """Return the key of the data that added teachers are scored on."""
    return _key("teachers-data", params.select(("data",)))


def _key(kind: str, content: Mapping[str, Any], name: str = "") -> Key:
    digest = fingerprint({"code": code_digest(_MODULES[kind]), **content})
    return Key(f"{kind}-{name}" if name else kind, digest)
