"""Stage ``cache``: everything about a capability that training would otherwise compute each step.

Prompt embeddings (one row per distinct prompt), source and target latents, and the teacher's own
samples with their noise seeds. Rows of one size lie together. Shards are written to the work folder
first, so an interrupted stage goes on where it stopped. Each has its SHA-256 beside it there: one
that changed on the disk since is made again.
"""

import json
import logging
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from tqdm import tqdm

from danceflow.data.buckets import images_of, read_bucket
from danceflow.data.cached_rows import INDEX, TEXTS, load_tensors
from danceflow.data.sizes import Size, by_size, sizes_of
from danceflow.errors import DataError, WeightsError
from danceflow.fields import SOURCE, Condition, normal, sample, seed_for, with_source
from danceflow.models.frozen.reading import one_to_all, told
from danceflow.models.memory import memory_of
from danceflow.models.teachers import Teachers
from danceflow.ops import keys
from danceflow.ops.files import atomic_directory, atomic_file, sha256, write_text
from danceflow.paths import MANIFEST

if TYPE_CHECKING:
    from danceflow.models.family import ModelFamily
    from danceflow.params.sections import Params
    from danceflow.paths import Paths

_LOG = logging.getLogger(__name__)
_ROWS_PER_SHARD = 512
_SPLIT = "train"
_NUM_EXAMPLES = 3


def run(params: "Params", paths: "Paths", capability: str) -> None:
    """Write ``data/cache/<capability>``.

    Raises:
        DataError: if the bucket is empty or damaged, or rows lack the source that edits need.
        WeightsError: if the teacher cannot be loaded, or gives values that are not finite.
    """
    config = params.capabilities[capability]
    folder = paths.bucket(config.bucket)
    dataset = read_bucket(folder, _SPLIT)
    if config.needs_source and any(cell is None for cell in dataset["source"]):
        raise DataError(f"{folder / _SPLIT}: capability {capability!r} needs a source in every row")
    teachers = Teachers(paths.teachers, params.family.name, [config.teacher], memory_of(params.run))
    family = teachers.family
    groups = by_size(sizes_of(dataset, range(len(dataset))))
    families = {size: family.sized(*size) for size in groups}
    if config.needs_source and not family.takes_source:
        raise WeightsError(
            f"capability {capability!r} edits, but the model in {paths.teachers} takes no source"
        )
    key = keys.cached(
        params, capability, config, dataset._fingerprint, sha256(paths.teachers / MANIFEST)
    )
    with key.working(paths) as work:
        place = paths.cache(capability)
        _write(work, place, params, capability, teachers, families, dataset, groups)


def _write(
    work: Path,
    place: Path,
    params: "Params",
    capability: str,
    teachers: Teachers,
    families: dict[Size, "ModelFamily"],
    dataset: Any,
    groups: dict[Size, list[int]],
) -> None:
    """Write the cache of a capability to ``place``, by way of shards in ``work``."""
    config, family = params.capabilities[capability], teachers.family
    # Where the prompt encoders see the source, a prompt has as many embeddings as it has sources.
    batch_size = params.cache.batch_size
    reading = _tell_reading(family, dataset, edits=config.needs_source)
    if config.needs_source and family.sees_source:
        texts = _write_seen_texts(work, families, dataset, groups, batch_size)
        prompt_row = torch.cat([torch.tensor(rows) for rows in groups.values()]).argsort()
    else:
        prompts = sorted(set(dataset["prompt"]))
        texts = _write_texts(work, family, prompts, batch_size)
        places = {prompt: place for place, prompt in enumerate(prompts)}
        prompt_row = torch.tensor([places[prompt] for prompt in dataset["prompt"]])
    shards = _write_latents(
        work, family, dataset, groups, prompt_row, has_source=config.needs_source
    )
    samples = _write_teacher_samples(
        work, params, capability, teachers, families, texts, prompt_row, dataset, groups
    )
    names = [name for found in (shards, samples) for part in found.values() for name in part]
    index = {
        "capability": capability,
        "takes_source": family.takes_source,
        "num_rows": len(dataset),
        "num_prompts": len(next(iter(texts.values()))),
        "sizes": [
            {
                "image_size": size,
                "num_rows": len(rows),
                "latents": shards[size],
                "teacher_samples": samples[size],
            }
            for size, rows in groups.items()
        ],
        "reading": reading,
        "teacher": config.teacher,
        "guidance": config.guidance,
        # The training's key goes by the content: code that gives the same is no reason to train.
        "files": {name: sha256(work / name) for name in (TEXTS, *names)},
    }
    with atomic_directory(place) as folder:
        for name in (TEXTS, *names):
            shutil.copyfile(work / name, folder / name)
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")


def _save(path: Path, tensors: dict[str, Tensor]) -> None:
    from safetensors.torch import save_file

    with atomic_file(path) as partial:
        save_file({k: v.contiguous() for k, v in tensors.items()}, partial)
    write_text(_sum_of(path), sha256(path))


def _sum_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")


def _is_whole(path: Path) -> bool:
    """Return whether a shard is there as it was written; one that is not is told."""
    known = _sum_of(path)
    if not (path.exists() and known.exists()):
        return False
    if sha256(path) == known.read_text(encoding="utf-8"):
        return True
    _LOG.warning("%s: the shard was changed (SHA-256 differs); it is made again", path)
    return False


def _chunks(
    groups: dict[Size, list[int]], most: int, what: str
) -> Iterator[tuple[Size, list[int]]]:
    """Yield runs of at most ``most`` rows of one size, size by size, with a progress bar."""
    chunks = [
        (size, rows[start : start + most])
        for size, rows in groups.items()
        for start in range(0, len(rows), most)
    ]
    yield from tqdm(chunks, desc=what, mininterval=2)


def _write_texts(
    work: Path, family: "ModelFamily", prompts: list[str], batch_size: int
) -> dict[str, Tensor]:
    """Write and return the prompt tables, a row per prompt."""
    path = work / TEXTS
    if not _is_whole(path):
        _warn_of_unknown_words(family, prompts)
        starts = range(0, len(prompts), batch_size)
        _save_texts(
            path,
            [
                family.condition(prompts[start : start + batch_size])
                for start in tqdm(starts, desc="prompts", mininterval=2)
            ],
            [f"prompt {prompt!r}" for prompt in prompts],
        )
    return load_tensors(path)


def _write_seen_texts(
    work: Path,
    families: dict[Size, "ModelFamily"],
    dataset: Any,
    groups: dict[Size, list[int]],
    batch_size: int,
) -> dict[str, Tensor]:
    """Write and return prompt tables, a row per row of the data, read beside its source.

    The rows are those of the first size, then those of the next.
    """
    path = work / TEXTS
    if not _is_whole(path):
        prompts = list(dataset["prompt"])
        _warn_of_unknown_words(next(iter(families.values())), sorted(set(prompts)))
        parts = []
        for size, rows in _chunks(groups, batch_size, "prompts"):
            images = images_of(dataset, rows, "source")
            source = families[size].encode(images)
            parts.append(families[size].condition([prompts[row] for row in rows], source, images))
        names = [_named(dataset, row) for rows in groups.values() for row in rows]
        _save_texts(path, parts, names)
    return load_tensors(path)


def _save_texts(path: Path, parts: Sequence[Condition], names: Sequence[str]) -> None:
    """Write the tensors of prompts, which have names; sources are kept beside the latents."""
    texts = [
        Condition({name: table for name, table in part.tensors.items() if name != SOURCE})
        for part in parts
    ]
    tensors = dict(Condition.cat(texts).tensors)
    for name, table in tensors.items():
        _require_finite(table, names, f"the text encoder's {name}")
    _save(path, tensors)


def _named(dataset: Any, row: int) -> str:
    return f"row {row} ({dataset['uid'][row]})"


def _require_finite(values: Tensor, names: Sequence[str], what: str) -> None:
    """Raise ``WeightsError`` naming the first row of ``values`` that holds NaN or infinity."""
    finite = values.isfinite().flatten(1).all(dim=1).tolist()
    bad = [name for name, is_finite in zip(names, finite, strict=True) if not is_finite]
    if bad:
        raise WeightsError(
            f"{bad[0]}: {what} is not finite, as are {len(bad)} of {len(names)}: the weights are "
            "damaged or overflow; nothing of it is cached"
        )


def _tell_reading(family: "ModelFamily", dataset: Any, *, edits: bool) -> dict[str, Any]:
    """Return how many prompts are not read to their end, or as another one, with examples.

    What is not read is no part of a condition; a warning says so once.
    """
    prompts = sorted(set(dataset["prompt"]))
    readings = [family.readings(prompt, edits=edits) for prompt in prompts]
    cut = [
        f"{prompt!r}: {said}"
        for prompt, items in zip(prompts, readings, strict=True)
        if (said := told(items))
    ]
    same = [[prompts[place] for place in places] for places in one_to_all(readings)]
    if cut:
        _LOG.warning(
            "%d of %d prompts are longer than the text encoder's window, such as %s",
            len(cut),
            len(prompts),
            cut[0],
        )
    if same:
        _LOG.warning(
            "%d prompts with different texts are %d to the text encoder, such as %s",
            sum(map(len, same)),
            len(same),
            " and ".join(map(repr, same[0][:2])),
        )
    return {
        "num_cut": len(cut),
        "cut": cut[:_NUM_EXAMPLES],
        "num_read_alike": sum(map(len, same)),
        "read_alike": [texts[:2] for texts in same[:_NUM_EXAMPLES]],
    }


def _warn_of_unknown_words(family: "ModelFamily", prompts: Sequence[str]) -> None:
    unknown = sorted({word for prompt in prompts for word in family.unknown_words(prompt)})
    if unknown:
        _LOG.warning("the text encoder does not know: %s", ", ".join(unknown[:20]))


def _write_latents(
    work: Path,
    family: "ModelFamily",
    dataset: Any,
    groups: dict[Size, list[int]],
    prompt_row: Tensor,
    *,
    has_source: bool,
) -> dict[Size, list[str]]:
    """Write prompt rows, target latents and source latents; return the shards' names by size."""
    names: dict[Size, list[str]] = {size: [] for size in groups}
    for number, (size, rows) in enumerate(_chunks(groups, _ROWS_PER_SHARD, "latents")):
        name = f"latents-{number:05d}.safetensors"
        names[size].append(name)
        if _is_whole(work / name):
            continue
        tensors = {
            "prompt_row": prompt_row[rows],
            "target": family.encode(images_of(dataset, rows, "target")),
        }
        if has_source:
            tensors["source"] = family.encode(images_of(dataset, rows, "source"))
        for kind in tensors.keys() & {"target", "source"}:
            uids = [_named(dataset, row) for row in rows]
            _require_finite(tensors[kind], uids, f"the codec's latents of the {kind}")
        _save(work / name, tensors)
    return names


def _write_teacher_samples(
    work: Path,
    params: "Params",
    capability: str,
    teachers: Teachers,
    families: dict[Size, "ModelFamily"],
    texts: dict[str, Tensor],
    prompt_row: Tensor,
    dataset: Any,
    groups: dict[Size, list[int]],
) -> dict[Size, list[str]]:
    """Write the teacher's samples of the bucket's first rows, with their seeds.

    Returns the names of the shards by size.
    """
    config, cache, device = params.capabilities[capability], params.cache, params.run.device
    field = teachers.field(config.teacher, config.guidance)
    names: dict[Size, list[str]] = {size: [] for size in groups}
    first = {
        size: [row for row in rows if row < cache.num_samples] for size, rows in groups.items()
    }
    for number, (size, rows) in enumerate(_chunks(first, cache.batch_size, "teacher samples")):
        name = f"samples-{number:05d}.safetensors"
        names[size].append(name)
        if _is_whole(work / name):
            continue
        family = families[size]
        seeds = [seed_for(params.run.seed, f"cache/{capability}", 0, row) for row in rows]
        noise = normal(family.latent_shape, seeds)
        tensors = {name: table[prompt_row[rows]] for name, table in texts.items()}
        source = None
        if config.needs_source:
            source = family.encode(images_of(dataset, rows, "source"))
        condition = with_source(
            tensors, source, family.latent_shape, takes_source=family.takes_source
        )
        clean = sample(
            field,
            noise.to(device),
            condition.to(device),
            family.grid(cache.num_steps).to(device),
        )
        what = (
            f"the sample of teacher {config.teacher!r} for capability {capability!r} (guidance "
            f"{config.guidance:g}, {cache.num_steps} steps)"
        )
        _require_finite(clean, [_named(dataset, row) for row in rows], what)
        _save(work / name, {"clean": clean.cpu(), "seed": torch.tensor(seeds)})
    return names
