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
    teachers = Teachers(paths.teachers, params.family.name, [config.teacher], params.run.device)
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
    family = teachers.family
    prompts = sorted(set(dataset["prompt"]))
    texts = _write_texts(work, family, prompts, params.cache.batch_size)
    rows = {prompt: row for row, prompt in enumerate(prompts)}
    prompt_row = torch.tensor([rows[prompt] for prompt in dataset["prompt"]])
    shards = _write_latents(work, family, dataset, prompt_row, has_source=config.needs_source)
    samples = _write_teacher_samples(work, params, capability, teachers, texts, prompt_row, dataset)
    index = {
        "capability": capability,
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
    work: Path, family: "ModelFamily", prompts: list[str], batch_size: int
) -> dict[str, Tensor]:
    """Writes and returns the prompt tables, a row per prompt, without the source."""
    path = work / _TEXTS
    if not path.exists():
        unknown = sorted({word for prompt in prompts for word in family.unknown_words(prompt)})
        if unknown:
            _LOG.warning("the text encoder does not know: %s", ", ".join(unknown[:20]))
        parts = [
            family.condition(prompts[start : start + batch_size]).tensors
            for start in tqdm(range(0, len(prompts), batch_size), desc="prompts", mininterval=2)
        ]
        names = [name for name in parts[0] if name != "source"]
        _save(path, {name: torch.cat([part[name] for part in parts]) for name in names})
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
    texts: dict[str, Tensor],
    prompt_row: Tensor,
    dataset: Any,
) -> list[str]:
    """Writes the teacher's samples of the first rows with their seeds; returns shard names."""
    config, cache = params.capabilities[capability], params.cache
    family = teachers.family
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
        source = torch.zeros_like(noise)
        if config.needs_source:
            source = family.encode(images_of(dataset, rows, "source"))
        tensors["source"] = source
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
        """Returns the conditions of ``rows``; rows without a source get a source of zeros."""
        tensors = {name: table[self.prompt_row[rows]] for name, table in self.texts.items()}
        blank = self.target.new_zeros(len(rows), *self.target.shape[1:])
        tensors["source"] = blank if self.source is None else self.source[rows]
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
