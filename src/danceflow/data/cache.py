"""Stage ``cache``: everything about a capability that training would otherwise compute each step.

Prompt embeddings (one row per distinct prompt), source and target latents, and the teacher's own
samples with their noise seeds. Rows of one size lie together. All of it is written shard by shard
to the work folder first, so an interrupted stage goes on where it stopped.
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from danceflow.data.buckets import (
    VALIDATION,
    encoded_sources,
    images_of,
    read_bucket,
    source_columns,
    sources_of,
)
from danceflow.data.cached_rows import INDEX
from danceflow.data.shards import MappedTable, mapped_tables
from danceflow.data.sizes import Size, by_size, shown, sizes_of
from danceflow.data.write_shards import ShardWriter, link_shards
from danceflow.errors import DataError, WeightsError
from danceflow.fields import SOURCES, normal, sample, seed_for, with_source
from danceflow.models.frozen.reading import Reading, one_to_all, told
from danceflow.models.memory import DTYPES, memory_of
from danceflow.models.teachers import Teachers
from danceflow.ops import keys
from danceflow.ops.files import atomic_directory, sha256, write_json
from danceflow.ops.group import current
from danceflow.paths import MANIFEST

if TYPE_CHECKING:
    from danceflow.models.family import ModelFamily
    from danceflow.params.sections import Params
    from danceflow.paths import Paths

_LOG = logging.getLogger(__name__)
_SPLIT = "train"
FIXED = "fixed"
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
    if config.needs_source and len(source_columns(dataset)) > family.max_sources:
        raise WeightsError(
            f"rows of capability {capability!r} have up to {len(source_columns(dataset))} pictures "
            f"to edit, the model in {paths.teachers} takes {family.max_sources}"
        )
    validation = read_bucket(folder, VALIDATION)
    key = keys.cached(
        params,
        capability,
        config,
        dataset._fingerprint,
        validation._fingerprint,
        sha256(paths.teachers / MANIFEST),
    )
    with key.working(paths) as work:
        place = paths.cache(capability)
        _write(work, place, params, capability, teachers, families, dataset, groups, validation)


def _write(
    work: Path,
    place: Path,
    params: "Params",
    capability: str,
    teachers: Teachers,
    families: dict[Size, "ModelFamily"],
    dataset: Any,
    groups: dict[Size, list[int]],
    validation: Any,
) -> None:
    """Write the cache of a capability to ``place``, by way of shards in ``work``."""
    config, family = params.capabilities[capability], teachers.family
    group = current()
    writer = ShardWriter(work, DTYPES[params.cache.dtype], params.cache.batch_size, group)
    prompts = sorted(set(dataset["prompt"]))
    unknown = sorted({word for prompt in prompts for word in family.unknown_words(prompt)})
    if unknown:
        _LOG.warning("the text encoder does not know: %s", ", ".join(unknown[:20]))
    reading = _tell_reading(family, prompts, edits=config.needs_source)
    # Where the prompt encoders see the source, a prompt has as many embeddings as it has sources.
    if config.needs_source and family.sees_source:
        texts = _write_seen_texts(writer, families, dataset, groups)
        prompt_row = torch.cat([torch.tensor(rows) for rows in groups.values()]).argsort()
    else:
        texts = _write_texts(writer, family, prompts)
        places = {prompt: place for place, prompt in enumerate(prompts)}
        prompt_row = torch.tensor([places[prompt] for prompt in dataset["prompt"]])
    latents = {
        size: _write_latents(
            writer, families[size], dataset, rows, prompt_row, has_source=config.needs_source
        )
        for size, rows in groups.items()
    }
    asked = _write_validation(writer, family, validation, has_source=config.needs_source)
    fixed = family.fixed_texts()
    # One row of everything, where there is anything.
    rows = [0] if fixed else []
    fixed_shards = writer.write(FIXED, rows, lambda _: {name: t[None] for name, t in fixed.items()})
    family.release()  # what follows needs the network alone
    tables = mapped_tables([work / name for name in texts])
    samples = {
        size: _write_teacher_samples(
            writer,
            params,
            capability,
            teachers,
            families[size],
            tables,
            mapped_tables([work / name for name in latents[size]]),
            dataset,
            rows,
        )
        for size, rows in groups.items()
    }
    index = {
        "capability": capability,
        "takes_source": family.takes_source,
        "dtype": params.cache.dtype,
        "num_rows": len(dataset),
        "num_prompts": len(next(iter(tables.values()))),
        "prompts": texts,
        "fixed": fixed_shards,
        "validation": asked,
        "sizes": [
            {
                "image_size": size,
                "num_rows": len(rows),
                "latents": latents[size],
                "teacher_samples": samples[size],
            }
            for size, rows in groups.items()
        ],
        "reading": reading,
        "teacher": config.teacher,
        "guidance": config.guidance,
        # By these a damaged shard is found. The training's key goes by them, too: code that gives
        # the same content is no reason to train.
        "files": writer.files,
    }
    if not group.is_main:
        return
    with atomic_directory(place, flush=False) as folder:  # every shard was flushed
        link_shards(writer.files, work, folder)
        write_json(folder / INDEX, index)


def _write_texts(writer: ShardWriter, family: "ModelFamily", prompts: list[str]) -> list[str]:
    """Write the prompts' tables, a row per prompt; return the names of the shards."""

    def texts(rows: Sequence[int]) -> dict[str, Tensor]:
        found = family.condition([prompts[row] for row in rows])
        return _texts(found.tensors, lambda place: f"prompt {prompts[rows[place]]!r}")

    return writer.write("prompts", range(len(prompts)), texts)


def _write_seen_texts(
    writer: ShardWriter,
    families: dict[Size, "ModelFamily"],
    dataset: Any,
    groups: dict[Size, list[int]],
) -> list[str]:
    """Write the prompts' tables, a row per row of the data, read beside its source.

    The rows are those of the first size, then those of the next, and so are the shards' names.
    """
    names: list[str] = []
    for size, rows in groups.items():

        def texts(rows: Sequence[int], family: "ModelFamily" = families[size]) -> dict[str, Tensor]:
            latents, images = encoded_sources(sources_of(dataset, rows), family.encode)
            prompts = dataset.select(rows)["prompt"]
            found = family.condition(list(prompts), latents, images)
            return _texts(found.tensors, _named(dataset, rows))

        names += writer.write(f"prompts-{shown(size)}", rows, texts)
    return names


def _texts(tensors: Mapping[str, Tensor], named: Callable[[int], str]) -> dict[str, Tensor]:
    """Return the tensors of prompts; sources are kept beside the latents."""
    texts = {name: table for name, table in tensors.items() if name not in SOURCES}
    for name, table in texts.items():
        _require_finite(table, named, f"the text encoder's {name}")
    return texts


def _named(dataset: Any, rows: Sequence[int]) -> Callable[[int], str]:
    """Return what says which row of the data a place in ``rows`` is."""
    return lambda place: f"row {rows[place]} ({dataset[rows[place]]['uid']})"


def _require_finite(values: Tensor, named: Callable[[int], str], what: str) -> None:
    """Raise ``WeightsError`` naming the first row of ``values`` that holds NaN or infinity."""
    bad = (~values.isfinite().flatten(1).all(dim=1)).nonzero().flatten().tolist()
    if bad:
        raise WeightsError(
            f"{named(bad[0])}: {what} is not finite, as are {len(bad)} of {len(values)}: the "
            "weights are damaged or overflow; nothing of it is cached"
        )


def _tell_reading(family: "ModelFamily", prompts: Sequence[str], *, edits: bool) -> dict[str, Any]:
    """Return how many prompts are not read to their end, or as another one, with examples.

    What is not read is no part of a condition; a warning says so once.
    """
    cut: list[str] = []

    def readings() -> Iterator[tuple[Reading, ...]]:
        for prompt in prompts:
            items = family.readings(prompt, edits=edits)
            if said := told(items):
                cut.append(f"{prompt!r}: {said}")
            yield items

    same = [[prompts[place] for place in places] for places in one_to_all(readings())]
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


def _write_latents(
    writer: ShardWriter,
    family: "ModelFamily",
    dataset: Any,
    rows: Sequence[int],
    prompt_row: Tensor,
    *,
    has_source: bool,
) -> list[str]:
    """Write prompt rows and latents of rows of one size; return the names of the shards."""

    def latents(rows: Sequence[int]) -> dict[str, Tensor]:
        tensors = {"prompt_row": prompt_row[rows]}
        tensors["target"] = family.encode(images_of(dataset, rows, "target"))
        if has_source:
            found, _ = encoded_sources(sources_of(dataset, rows), family.encode)
            tensors |= dict(zip(source_columns(dataset), found, strict=True))
        for kind in [name for name in tensors if name != "prompt_row"]:
            named = _named(dataset, rows)
            _require_finite(tensors[kind], named, f"the codec's latents of the {kind}")
        return tensors

    return writer.write(f"latents-{shown(family.image_size)}", rows, latents)


def _write_validation(
    writer: ShardWriter, family: "ModelFamily", dataset: Any, *, has_source: bool
) -> list[dict[str, Any]]:
    """Write the conditions of the rows that score a training; return where they are, by size."""
    found = []
    for size, rows in by_size(sizes_of(dataset, range(len(dataset)))).items():
        conditions = partial(_conditions, family.sized(*size), dataset, has_source=has_source)
        shards = writer.write(f"validation-{shown(size)}", rows, conditions)
        found.append({"image_size": size, "rows": rows, "conditions": shards})
    return found


def _conditions(
    family: "ModelFamily", dataset: Any, rows: Sequence[int], *, has_source: bool
) -> Mapping[str, Tensor]:
    pictures = sources_of(dataset, rows) if has_source else []
    latents, images = encoded_sources(pictures, family.encode)
    prompts = list(dataset.select(rows)["prompt"])
    return family.condition(prompts, latents or None, images or None).tensors


def _write_teacher_samples(
    writer: ShardWriter,
    params: "Params",
    capability: str,
    teachers: Teachers,
    family: "ModelFamily",
    texts: Mapping[str, MappedTable],
    latents: Mapping[str, MappedTable],
    dataset: Any,
    rows: Sequence[int],
) -> list[str]:
    """Write the teacher's samples of the bucket's first rows, with their seeds.

    Of ``rows``, which have one size. Returns the names of the shards, one per batch.
    """
    config, cache, device = params.capabilities[capability], params.cache, params.run.device
    field = teachers.field(config.teacher, config.guidance)
    what = (
        f"the sample of teacher {config.teacher!r} for capability {capability!r} (guidance "
        f"{config.guidance:g}, {cache.num_steps} steps)"
    )

    places = {row: place for place, row in enumerate(rows)}

    def samples(rows: Sequence[int]) -> dict[str, Tensor]:
        seeds = [seed_for(params.run.seed, f"cache/{capability}", 0, row) for row in rows]
        at = torch.tensor([places[row] for row in rows])
        prompts = latents["prompt_row"][at]
        tensors = {name: table[prompts] for name, table in texts.items()}
        columns = source_columns(dataset) if config.needs_source else ()
        sources = [latents[name][at] for name in columns] or None
        condition = with_source(
            tensors, sources, family.latent_shape, takes_source=family.takes_source
        )
        clean = sample(
            field,
            normal(family.latent_shape, seeds).to(device),
            condition.to(device),
            family.grid(cache.num_steps).to(device),
        )
        _require_finite(clean, _named(dataset, rows), what)
        return {"clean": clean, "seed": torch.tensor(seeds)}

    first = [row for row in rows if row < cache.num_samples]
    # A batch takes a while: what is lost with a killed process is one.
    return writer.write(f"samples-{shown(family.image_size)}", first, samples, rows_per_shard=1)
