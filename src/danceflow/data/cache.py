"""Stage ``cache``: everything about a capability that training would otherwise compute each step.

Prompt embeddings (one row per distinct prompt), source and target latents, and the teacher's own
samples with their noise seeds. Shards are written to the work folder first, so an interrupted stage
goes on where it stopped.
"""

import json
import logging
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from tqdm import tqdm

from danceflow.data.buckets import images_of, read_bucket
from danceflow.errors import DataError, WeightsError
from danceflow.fields import Condition, normal, sample, seed_for
from danceflow.models.memory import memory_of
from danceflow.models.package import Teachers
from danceflow.ops.files import atomic_directory, atomic_file, fingerprint, sha256

if TYPE_CHECKING:
    from danceflow.models.family import ModelFamily
    from danceflow.paths import Paths
    from danceflow.schema import Params

_LOG = logging.getLogger(__name__)
_ROWS_PER_SHARD = 512
_TEXTS = "prompts.safetensors"
_SPLIT = "train"


def run(params: "Params", paths: "Paths", capability: str) -> None:
    """Writes ``data/cache/<capability>``.

    Raises:
        DataError: if the bucket is empty or damaged, or rows lack the source that edits need.
        WeightsError: if the teacher cannot be loaded.
    """
    config = params.capabilities[capability]
    folder = paths.bucket(config.bucket)
    dataset = read_bucket(folder, _SPLIT)
    if config.needs_source and any(cell is None for cell in dataset["source"]):
        raise DataError(f"{folder / _SPLIT}: capability {capability!r} needs a source in every row")
    teachers = Teachers(paths.teachers, params.family.name, [config.teacher], memory_of(params.run))
    family = sized_to(teachers.family, dataset)
    if config.needs_source and not family.takes_source:
        raise WeightsError(
            f"capability {capability!r} edits, but the model in {paths.teachers} takes no source"
        )
    key = fingerprint(
        {
            "params": params.select(("run", "family", "cache")),
            "capability": config.model_dump(mode="json", exclude={"weight"}),
            "data": dataset._fingerprint,
            "teachers": sha256(paths.teachers / "manifest.json"),
        }
    )
    work = paths.work(f"cache-{capability}-{key[:16]}")
    work.mkdir(parents=True, exist_ok=True)
    # Where the prompt encoders see the source, a prompt has as many embeddings as it has sources.
    edits = dataset if config.needs_source and family.sees_source else None
    prompts = sorted(set(dataset["prompt"])) if edits is None else list(dataset["prompt"])
    texts = _write_texts(work, family, prompts, params.cache.batch_size, edits)
    prompt_row = torch.arange(len(dataset))
    if edits is None:
        rows = {prompt: row for row, prompt in enumerate(prompts)}
        prompt_row = torch.tensor([rows[prompt] for prompt in dataset["prompt"]])
    shards = _write_latents(work, family, dataset, prompt_row, has_source=config.needs_source)
    samples = _write_teacher_samples(
        work, params, capability, teachers, family, texts, prompt_row, dataset
    )
    index = {
        "capability": capability,
        "image_size": family.image_size,
        "takes_source": family.takes_source,
        "key": key,
        "num_rows": len(dataset),
        "num_prompts": len(prompts),
        "latents": shards,
        "teacher_samples": samples,
        "teacher": config.teacher,
        "guidance": config.guidance,
    }
    with atomic_directory(paths.cache(capability)) as place:
        for name in (_TEXTS, *shards, *samples):
            shutil.copyfile(work / name, place / name)
        (place / "index.json").write_text(json.dumps(index, indent=2) + "\n")


def sized_to(family: "ModelFamily", dataset: Any) -> "ModelFamily":
    """Returns ``family`` for images of the size that ``dataset`` holds."""
    height, width = images_of(dataset, [0], "target").shape[-2:]
    return family.sized(height, width)


def _save(path: Path, tensors: dict[str, Tensor]) -> None:
    from safetensors.torch import save_file

    with atomic_file(path) as partial:
        save_file({k: v.contiguous() for k, v in tensors.items()}, partial)


def _load(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return dict(load_file(path))
    except (OSError, SafetensorError) as error:
        raise DataError(f"{path}: the cache is missing or damaged: {error}") from error


def _write_texts(
    work: Path, family: "ModelFamily", prompts: list[str], batch_size: int, edits: Any | None
) -> dict[str, Tensor]:
    """Writes and returns the prompt tables, a row per prompt, without the source.

    With ``edits`` the prompts are those of its rows, read together with their source images.
    """
    path = work / _TEXTS
    if not path.exists():
        unknown = sorted({word for prompt in prompts for word in family.unknown_words(prompt)})
        if unknown:
            _LOG.warning("the text encoder does not know: %s", ", ".join(unknown[:20]))
        parts = []
        for start in tqdm(range(0, len(prompts), batch_size), desc="prompts", mininterval=2):
            rows = range(start, min(start + batch_size, len(prompts)))
            images = None if edits is None else images_of(edits, rows, "source")
            source = None if images is None else family.encode(images)
            parts.append(family.condition([prompts[row] for row in rows], source, images))
        tables = Condition.cat(parts).tensors
        _save(path, {name: table for name, table in tables.items() if name != "source"})
    return _load(path)


def _write_latents(
    work: Path, family: "ModelFamily", dataset: Any, prompt_row: Tensor, *, has_source: bool
) -> list[str]:
    """Writes prompt rows, target latents and source latents, and returns the shards' names."""
    names = []
    starts = range(0, len(dataset), _ROWS_PER_SHARD)
    for number, start in enumerate(tqdm(starts, desc="latents", mininterval=2)):
        names.append(f"latents-{number:05d}.safetensors")
        if (work / names[-1]).exists():
            continue
        rows = list(range(start, min(start + _ROWS_PER_SHARD, len(dataset))))
        tensors = {
            "prompt_row": prompt_row[rows],
            "target": family.encode(images_of(dataset, rows, "target")),
        }
        if has_source:
            tensors["source"] = family.encode(images_of(dataset, rows, "source"))
        _save(work / names[-1], tensors)
    return names


def _write_teacher_samples(
    work: Path,
    params: "Params",
    capability: str,
    teachers: Teachers,
    family: "ModelFamily",
    texts: dict[str, Tensor],
    prompt_row: Tensor,
    dataset: Any,
) -> list[str]:
    """Writes the teacher's samples of the first rows with their seeds; returns shard names."""
    config, cache = params.capabilities[capability], params.cache
    field = teachers.field(config.teacher, config.guidance)
    count = min(cache.num_samples, len(dataset))
    names = []
    starts = range(0, count, cache.batch_size)
    for number, start in enumerate(tqdm(starts, desc="teacher samples", mininterval=2)):
        names.append(f"samples-{number:05d}.safetensors")
        if (work / names[-1]).exists():
            continue
        rows = list(range(start, min(start + cache.batch_size, count)))
        seeds = [seed_for(params.run.seed, f"cache/{capability}", 0, row) for row in rows]
        noise = normal(family.latent_shape, seeds)
        tensors = {name: table[prompt_row[rows]] for name, table in texts.items()}
        if family.takes_source:
            tensors["source"] = torch.zeros_like(noise)
        if config.needs_source:
            tensors["source"] = family.encode(images_of(dataset, rows, "source"))
        device = params.run.device
        clean = sample(
            field,
            noise.to(device),
            Condition(tensors).to(device),
            family.grid(cache.num_steps).to(device),
        )
        _save(work / names[-1], {"clean": clean.cpu(), "seed": torch.tensor(seeds)})
    return names


class ConditionCache:
    """The cached rows of one capability, in memory."""

    def __init__(self, folder: Path) -> None:
        """Reads ``folder``; raises ``DataError`` if a file is missing or damaged."""
        try:
            self.index = json.loads((folder / "index.json").read_text())
        except (OSError, ValueError) as error:
            raise DataError(f"{folder / 'index.json'}: cannot be read: {error}") from error
        self.texts = _load(folder / _TEXTS)
        shards = [_load(folder / name) for name in self.index["latents"]]
        self.prompt_row = torch.cat([shard["prompt_row"] for shard in shards])
        self.target = torch.cat([shard["target"] for shard in shards])
        self.source = (
            torch.cat([shard["source"] for shard in shards]) if "source" in shards[0] else None
        )
        samples = [_load(folder / name)["clean"] for name in self.index["teacher_samples"]]
        self.teacher_samples = torch.cat(samples)

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.prompt_row)

    def condition(self, rows: Tensor) -> Condition:
        """Returns the conditions of ``rows``; where the model takes one, no source is zeros."""
        tensors = {name: table[self.prompt_row[rows]] for name, table in self.texts.items()}
        if self.source is not None:
            tensors["source"] = self.source[rows]
        elif self.index["takes_source"]:
            tensors["source"] = self.target.new_zeros(len(rows), *self.target.shape[1:])
        return Condition(tensors)

    def clean(self, kind: str, rows: Tensor) -> Tensor:
        """Returns clean latents of ``rows``: the ``data`` targets or the ``teacher`` samples.

        Raises:
            WeightsError: if a row has no teacher sample; ``cache.num_samples`` decides how many do.
        """
        if kind == "data":
            return self.target[rows]
        if int(rows.max()) >= len(self.teacher_samples):
            raise WeightsError(
                f"only {len(self.teacher_samples)} rows have a teacher sample; raise "
                "cache.num_samples"
            )
        return self.teacher_samples[rows]

    def num_rows(self, kind: str | None) -> int:
        """Returns how many rows can be drawn when clean states of ``kind`` are needed."""
        return len(self.teacher_samples) if kind == "teacher" else len(self)
