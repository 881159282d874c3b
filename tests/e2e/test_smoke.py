"""Every family of stock pipelines through all stages with its smoke recipe, as a user would.

Only weights and pictures are small: a pipeline of random weights that diffusers wrote, LoRAs on it,
and crops of scikit-learn's two photographs in the columns that the recipe expects. The stages run
in this process: starting Python with its libraries is most of what a small stage takes, and how
DVC starts stages is no matter of the family. What one family's stages wrote is given to DVC.
"""

import csv
import io
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from shutil import copyfile, copytree, ignore_patterns
from typing import Any, cast

import numpy as np
import pytest
import torch
from checkout import ROOT, Checkout
from PIL import Image, ImageOps
from safetensors.torch import load_file, save_file
from stock_cases import CASES, StockCase, picture
from tiny_models import shake, stock_pipeline
from tiny_project import as_a_stage_runs
from tiny_stock import stock_family

from danceflow.fields import normal, sample
from danceflow.models.adapters.lora import add_student_adapter, save_adapter
from danceflow.models.package import load_package, read_manifest, write_manifest
from danceflow.models.weights import WEIGHTS_FILE
from danceflow.params.read import override, parse_params
from danceflow.params.yaml12 import read_yaml
from danceflow.paths import Paths
from danceflow.registry.student import Student
from danceflow.stages import STAGES, run_stage
from danceflow.train.distill import stage

pytestmark = [pytest.mark.pipeline, pytest.mark.timeout(900)]

ROWS = 24  # of each capability
PROMPT = "a temple by the lake"


# What a user has: pictures in a table, a pipeline, teachers -----------------------------------


def crops(count: int) -> Iterator[Image.Image]:
    """Parts of a photograph of a temple and one of a flower, no two alike."""
    from sklearn.datasets import load_sample_images

    photographs = [Image.fromarray(image) for image in load_sample_images().images]
    for number in range(count):
        left, top = 24 * (number % 22), 60 * (number // 22)
        part = photographs[number % 2].crop((left, top, left + 96, top + 96))
        yield part.resize((40, 40))


def erased(image: Image.Image) -> Image.Image:
    changed = image.copy()
    changed.paste((128, 128, 128), (12, 12, 28, 28))
    return changed


def letters(number: int) -> str:
    """A word of its own; the tiny tokenizer of SD3 knows neither digits nor commas."""
    return "abcdefgh"[number % 8] + "abcdefgh"[number // 8]


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def write_table(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write a CSV; cells that are pictures become files beside it."""
    path.parent.mkdir(parents=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        for number, row in enumerate(rows):
            for column, cell in row.items():
                if isinstance(cell, Image.Image):
                    name = f"{number:03d}-{column}.png"
                    cell.save(path.parent / name)
                    row[column] = name
            writer.writerow(row)


def write_pictures(raw: Path) -> None:
    looks = ("photo", "illustration")
    rows = [
        {"look": looks[n % 2], "caption": f"a {looks[n % 2]} {letters(n)}", "picture": image}
        for n, image in enumerate(crops(2 * ROWS))
    ]
    write_table(raw / "pictures" / "pictures.csv", rows)


def write_danceopd(raw: Path) -> None:
    rows = []
    for number, image in enumerate(crops(2 * ROWS)):
        edit = number % 2 == 1
        rows.append(
            {
                "uid": f"row-{number}",
                "task": "local_edit" if edit else "t2i",
                "raw_task": "removal" if edit else "photo",
                "prompt": "erase the middle" if edit else f"part {number} of a photograph",
                "source_image": image if edit else "",
                "target_image": erased(image) if edit else image,
            }
        )
    write_table(raw / "danceopd" / "train.csv", rows)


def write_omniedit(raw: Path) -> None:
    from datasets import Dataset, Features, Sequence, Value
    from datasets import Image as ImageColumn

    kinds: tuple[tuple[str, str, Callable[[Image.Image], Image.Image]], ...] = (
        ("removal", "erase the middle", erased),
        ("style", "turn it into a negative", ImageOps.invert),
    )
    rows = []
    for number, image in enumerate(crops(2 * ROWS)):
        task, prompt, change = kinds[number % 2]
        rows.append(
            {
                "omni_edit_id": f"task_{number}",
                "task": task,
                "edited_prompt_list": [prompt, f"{prompt}, please"],
                "src_img": {"bytes": png(image), "path": None},
                "edited_img": {"bytes": png(change(image)), "path": None},
                "o_score": 9.5,
            }
        )
    columns = Features(
        {
            "omni_edit_id": Value("string"),
            "task": Value("string"),
            "edited_prompt_list": Sequence(Value("string")),
            "src_img": ImageColumn(),
            "edited_img": ImageColumn(),
            "o_score": Value("float64"),
        }
    )
    (raw / "omniedit" / "data").mkdir(parents=True)
    Dataset.from_list(rows, features=columns).to_parquet(
        raw / "omniedit" / "data" / "train-00000-of-00001.parquet"
    )


def call_sd3(
    pipeline: Any,
    prompts: list[str],
    noise: torch.Tensor,
    guidance: float,
    size: tuple[int, int],
    source: torch.Tensor | None,
    **options: Any,
) -> torch.Tensor:
    assert source is None
    return pipeline(
        list(prompts),
        latents=noise,
        guidance_scale=guidance,
        height=size[0],
        width=size[1],
        **options,
    ).images


SD3 = StockCase("sd3", stock_pipeline, call_sd3, edits=False)


@dataclass(frozen=True)
class Smoke:
    """A smoke recipe and what it is fed with.

    Attributes:
        stock: the pipeline, and how it is asked.
        write_rows: writes ``data/raw``.
        teachers: LoRAs that are brought along.
        edits: whether the teachers edit.
        adapter: where in the student's package what the stock pipeline loads lies.
    """

    stock: StockCase
    write_rows: Callable[[Path], None]
    teachers: tuple[str, ...]
    edits: bool = True
    adapter: str = "adapter"


BY_DVC = "zimage_edit"
BOTH = ("local", "global")
SMOKE = {
    "flux2_klein": Smoke(CASES["flux2"], write_danceopd, ("edit",)),
    "qwen_image_edit": Smoke(CASES["qwen_image_edit"], write_omniedit, BOTH),
    "sd35_edit": Smoke(SD3, write_omniedit, BOTH, adapter="adapter/stock"),
    "sd35_lora": Smoke(SD3, write_pictures, ("photo", "illustration"), edits=False),
    "zimage_edit": Smoke(CASES["zimage_omni"], write_omniedit, BOTH),
}


def write_teachers(name: str, folder: Path) -> Path:
    """Write a pipeline and LoRAs on it, and return the pipeline's folder."""
    smoke, pipeline = SMOKE[name], folder / "pipeline"
    family = stock_family(smoke.stock.family, smoke.stock.build(), pipeline)
    if smoke.edits:
        family = family.editing()
    for seed, teacher in enumerate(smoke.teachers):
        backbone = family.load_backbone(pipeline / "transformer")
        shake(add_student_adapter(family, backbone, rank=2, alpha=2, seed=seed), seed)
        save_adapter(backbone, folder / teacher)
    return pipeline


# The run ---------------------------------------------------------------------------------------


def begun(name: str, folder: Path, database: Path) -> Checkout:
    """A checkout with the recipe, rows and the teachers that are brought along."""
    smoke, pipeline = SMOKE[name], write_teachers(name, folder)
    checkout = Checkout(folder, {}, ROOT / "recipes" / "smoke" / f"{name}.yaml")
    copyfile(database, checkout.root / "mlflow.db")
    smoke.write_rows(checkout.paths.raw)
    named = [part for t in smoke.teachers for part in ("--teacher", f"{t}={folder / t}")]
    edits = ["--edits"] if smoke.edits else []
    family = ("--family", smoke.stock.family)
    checkout.run("danceflow", "bring-teachers", str(pipeline), *family, *edits, *named)
    return checkout


def run_stages(checkout: Checkout) -> list[str]:
    """Run every stage but the teachers' once and return what DVC calls them."""
    ran = []
    with as_a_stage_runs(checkout.params):
        for known in STAGES.values():
            items = checkout.params.capabilities if known.matrix else [None]
            for item in [] if known.frozen else items:
                run_stage(known.name, item, checkout.root)
                ran.append("@".join(filter(None, [known.name, item])))
    return ran


@pytest.fixture(scope="module")
def by_dvc(tmp_path_factory: pytest.TempPathFactory, mlflow_template: Path) -> Checkout:
    """The checkout of which DVC knows that everything in it has run."""
    checkout = begun(BY_DVC, tmp_path_factory.mktemp(BY_DVC), mlflow_template)
    assert len(checkout.params.capabilities) == 2

    # The lock names every stage with all that it writes, and nothing is left to do.
    ran = run_stages(checkout)
    checkout.run("dvc", "commit", "--force")
    lock = checkout.lock
    assert set(read_yaml(checkout.root / "dvc.lock")["stages"]) == {*ran, "teachers"}
    assert checkout.dvc("repro") == []
    assert checkout.lock == lock
    return checkout


@pytest.fixture
def finished_smoke(
    name: str, request: pytest.FixtureRequest, tmp_path: Path, mlflow_template: Path
) -> Checkout:
    """The checkout of a smoke recipe in which every stage has run."""
    if name == BY_DVC:
        return cast(Checkout, request.getfixturevalue("by_dvc"))
    checkout = begun(name, tmp_path, mlflow_template)
    run_stages(checkout)
    return checkout


@pytest.mark.parametrize("name", SMOKE)
def test_a_family_is_distilled(name: str, finished_smoke: Checkout) -> None:
    smoke, checkout, params = SMOKE[name], finished_smoke, finished_smoke.params
    capabilities = list(params.capabilities)

    # The scores of both capabilities, by the recipe's own family.
    summary = checkout.json(checkout.paths.summary)
    assert list(summary["capabilities"]) == capabilities
    for row in summary["capabilities"].values():
        assert 0 <= row["student"] <= 10
        assert row["num_samples"] >= 1
    assert summary["training"]["num_updates"] == params.distill.num_updates

    # The student makes and changes pictures.
    package = load_package(checkout.paths.student)
    assert package.family.name == params.family.name == smoke.stock.family
    student, size = Student(package), params.data.image_size
    images = student.generate([PROMPT], num_steps=2)
    if smoke.edits:
        images += student.edit(list(crops(1)), ["erase the middle"], num_steps=2)
    for image in images:
        assert image.size == (size, size)
        assert np.asarray(image).std() > 0

    # The stock pipeline with the student's LoRA gives the student's latents and images.
    family, steps = package.family, 2
    source = picture(1) if smoke.stock.edits else None
    noise = normal(family.latent_shape, [7])
    latents = None if source is None else family.encode(source)
    with torch.no_grad():
        condition = family.condition([PROMPT], latents, source)
        expected = sample(package.field, noise, condition, family.grid(steps))
    pipeline = smoke.stock.build()

    def distances() -> dict[str, float]:
        """Of the stock pipeline's answers to the student's, in parts of their way from noise."""
        ours = {"latent": (noise, expected), "pt": (family.decode(noise), family.decode(expected))}
        found = {}
        for output, (start, end) in ours.items():
            options = {"num_inference_steps": steps, "output_type": output}
            given = smoke.stock.call(
                pipeline, [PROMPT], noise, 1.0, (size, size), source, **options
            )
            found[output] = float((given - end).norm() / (end - start).norm())
        return found

    without = distances()
    pipeline.load_lora_weights(checkout.paths.student / smoke.adapter)
    for output, distance in distances().items():
        assert distance < min(0.01, without[output] / 20)  # the package's weights are float16


def test_nothing_that_is_frozen_and_cached_is_loaded_by_distill(
    by_dvc: Checkout, tmp_path: Path
) -> None:
    """The encoders' files are such as nobody can load, and the codec's has a decoder alone."""
    copytree(by_dvc.root, tmp_path / "copy", ignore=ignore_patterns(".venv", "mlflow.db"))
    paths = Paths(tmp_path / "copy")
    meta = {k: v for k, v in read_manifest(paths.teachers).items() if k != "files"}
    frozen = paths.teachers / "frozen"
    for part in ("text_encoder", "siglip"):
        (file,) = (frozen / part).glob("*.safetensors")
        file.unlink()
        file.write_bytes(b"no weights")
    autoencoder = frozen / "vae" / WEIGHTS_FILE
    kept = {n: v for n, v in load_file(autoencoder).items() if not n.startswith("encoder")}
    autoencoder.unlink()
    save_file(kept, autoencoder)
    write_manifest(paths.teachers, meta)
    changes = {"distill.seed": 5, "tracking.enabled": False}
    params = parse_params(override(read_yaml(paths.params), changes), "changed")
    stage.run(params, paths)
    rows = [json.loads(line) for line in (paths.distill_report / "metrics.jsonl").open()]
    assert {name for row in rows for name in row.get("scores", {})} == set(params.capabilities)
    assert list((paths.distill_report / "grids").iterdir())
