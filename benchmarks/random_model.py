"""Teachers and caches of random weights, and timed updates of the trainer on them, for benchmarks.

A network is made where it computes and written as teachers are. Of frozen parts there is what a
training reads of them: settings and configurations, for it asks no encoder and no codec.
"""

import json
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from danceflow.capability import asked
from danceflow.data.cached_rows import INDEX, ConditionCache
from danceflow.data.write_shards import ShardWriter
from danceflow.method import method_of
from danceflow.models.adapters.lora import STUDENT, add_student_adapter, save_adapter
from danceflow.models.bring import BASE
from danceflow.models.family import ModelFamily, open_family
from danceflow.models.frozen.part import FROZEN_FILE
from danceflow.models.frozen.text import word_tokenizer
from danceflow.models.memory import DTYPES, memory_of
from danceflow.models.package import FROZEN_FOLDER, write_manifest
from danceflow.models.teachers import Teachers
from danceflow.models.weights import CONFIG_FILE
from danceflow.ops.files import write_json
from danceflow.ops.tracking import NoTracker
from danceflow.paths import MANIFEST
from danceflow.plan.architecture import Architecture
from danceflow.train.distill.trainer import Trainer

if TYPE_CHECKING:
    from danceflow.params.sections import Params
    from danceflow.train.distill.observe import Observer

_PIPELINES = {"sd3": "StableDiffusion3Pipeline", "flux2": "Flux2KleinPipeline"}
_WIDTH = 0.5  # of weights, times 1 / sqrt(inputs): activations keep their size
_UP = 0.02  # of an adapter's second factor: teachers differ from their base, and no more


def write_teachers(
    folder: Path, architecture: Architecture, adapters: Mapping[str, int], size: int, device: str
) -> None:
    """Write a folder of teachers: the network ``base`` and LoRA adapters on it.

    Args:
        folder: where to; its manifest is written last.
        architecture: sizes of the network.
        adapters: rank of each, by name.
        size: side in pixels of its images.
        device: where weights are drawn.
    """
    family = _write_frozen(folder / FROZEN_FOLDER, architecture, size)
    write_manifest(
        folder,
        {
            "family": architecture.family,
            "base": BASE,
            "teachers": dict.fromkeys([BASE, *adapters], "random"),
        },
    )
    # What follows is no part of the manifest's digests, which are read whole at every start.
    manifest = (folder / MANIFEST).read_bytes()
    (folder / MANIFEST).unlink()
    generator = torch.Generator(device).manual_seed(0)
    network = _random(family.empty_backbone(), generator, device)
    family.save_backbone(network, folder / BASE)
    for seed, (name, rank) in enumerate(adapters.items()):
        random_adapter(family, network, folder / name, rank, seed)
    (folder / MANIFEST).write_bytes(manifest)


def random_adapter(
    family: ModelFamily, network: nn.Module, folder: Path, rank: int, seed: int
) -> None:
    """Write a LoRA adapter of random factors for a network, which stays as it is."""
    factors = add_student_adapter(family, network, rank, float(rank), seed)
    with torch.no_grad():
        for up in factors[1::2]:
            up.normal_(std=_UP)
    save_adapter(network, folder)
    network.delete_adapters(STUDENT)  # type: ignore[operator]


def _write_frozen(folder: Path, architecture: Architecture, size: int) -> ModelFamily:
    """Write settings and configurations, and return the family that they make."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    # A codec halves the sides between its levels; FLUX.2's once more, in patches.
    halvings = architecture.factor.bit_length() - 1 - (architecture.family == "flux2")
    for part, config in (
        ("text_encoder", {}),
        ("vae", {"block_out_channels": [8] * (halvings + 1), "scaling_factor": 1.0}),
    ):
        (folder / part).mkdir(parents=True)
        write_json(folder / part / CONFIG_FILE, config)
    word_tokenizer(("picture",), 77).save_pretrained(folder / "tokenizer")
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    settings = {
        "family": architecture.family,
        "pipeline": _PIPELINES[architecture.family],
        "prediction": "velocity",
        "sigma_min": 0.0,
        "shift": 3.0,
        "scheduler": json.loads(scheduler.to_json_string()),
        "image_size": [size, size],
        "transformer": dict(architecture.transformer),
    }
    write_json(folder / FROZEN_FILE, settings)
    return open_family(architecture.family, folder)


def _random(network: nn.Module, generator: torch.Generator, device: str) -> nn.Module:
    """Return a network without weights with random ones; what has values keeps them."""
    made = {}
    for name, value in network.state_dict().items():
        if not value.is_meta:
            made[name] = value
        elif value.ndim > 1:
            drawn = torch.empty(value.shape, device=device).normal_(generator=generator)
            made[name] = (drawn * (_WIDTH / value[0].numel() ** 0.5)).half()
        else:
            made[name] = torch.full(value.shape, float(name.endswith("weight")), device=device)
    network.load_state_dict(made, assign=True)
    return network


def write_cache(
    folder: Path, architecture: Architecture, size: int, num_rows: int, params: "Params"
) -> None:
    """Write a capability's cache of random rows as the stage writes it, all with a source if any.

    Args:
        folder: of the capability, by whose name the parameters know it.
        architecture: sizes of the network.
        size: side in pixels of the images.
        num_rows: how many.
        params: the recipe.
    """
    config, transformer = params.capabilities[folder.name], architecture.transformer
    side = size // architecture.factor
    latent = (num_rows, transformer["out_channels"] or transformer["in_channels"], side, side)
    prompt = (architecture.prompt_tokens, int(transformer["joint_attention_dim"]))
    generator = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> Tensor:
        return torch.empty(shape).normal_(generator=generator)

    if architecture.family == "flux2":
        texts = {"prompt_embeds": drawn(num_rows, *prompt)}
        fixed = {"empty": drawn(1, *prompt)}
    else:
        pooled = int(transformer["pooled_projection_dim"])
        texts = {"prompt_embeds": drawn(num_rows, *prompt), "pooled": drawn(num_rows, pooled)}
        fixed = {"prompt_embeds": drawn(1, 1, *prompt), "pooled": drawn(1, 1, pooled)}
    latents = {"prompt_row": torch.arange(num_rows), "target": drawn(*latent)}
    if config.needs_source:
        latents["source"] = drawn(*latent)
    folder.mkdir(parents=True)
    writer = ShardWriter(folder, DTYPES[params.cache.dtype], num_rows)
    rows = range(num_rows)
    index = {
        "capability": folder.name,
        "takes_source": architecture.edits,
        "prompts": writer.write("prompts", rows, lambda _: texts),
        "fixed": writer.write("fixed", [0], lambda _: fixed),
        "validation": [],
        "sizes": [
            {
                "image_size": [size, size],
                "num_rows": num_rows,
                "latents": writer.write("latents", rows, lambda _: latents),
                "teacher_samples": [],
            }
        ],
        "files": writer.files,
    }
    write_json(folder / INDEX, index)


@dataclass(frozen=True)
class Update:
    """One update: seconds, of the process's cores too, and evaluations by part of the ledger."""

    seconds: float
    processor_seconds: float
    evaluations: Mapping[str, int]


def open_trainer(
    params: "Params", teachers: Path, caches: Mapping[str, Path], work: Path
) -> Trainer:
    """Return the trainer that the stage ``distill`` would make, of teachers that it loads."""
    loaded = Teachers(teachers, params.family.name, asked(params).teachers, memory_of(params.run))
    opened = {name: ConditionCache(folder) for name, folder in caches.items()}
    for cache in opened.values():
        loaded.family.take_fixed(cache.fixed)
    nobody = cast("Observer", None)  # scores and pictures are no part of an update
    return Trainer(params, method_of(params.distill), loaded, opened, work, NoTracker(), nobody)


def timed_update(trainer: Trainer) -> Update:
    """Make the trainer's next update and return what it took."""
    before = trainer.ledger.spent
    wait(trainer.device)
    began, began_processor = time.perf_counter(), time.process_time()
    trainer._update(trainer.step / trainer.config.num_updates)
    wait(trainer.device)
    seconds = time.perf_counter() - began
    processor_seconds = time.process_time() - began_processor
    trainer.ledger.close_update()
    trainer.step += 1
    made = {part: count - before[part] for part, count in trainer.ledger.spent.items()}
    return Update(seconds, processor_seconds, made)


def wait(device: torch.device) -> None:
    """Wait until a GPU has done what it was asked for."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def tensor_bytes(tensors: Iterable[Tensor]) -> int:
    """Return the bytes of tensors, each storage once."""
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    return sum(storages.values())


def resident_bytes() -> int:
    """Return what this process holds in memory for itself (``RssAnon``), in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    found = dict(line.split(":\t", 1) for line in lines)
    return int(found["RssAnon"].split()[0]) * 1024
