"""Whatever the project writes: a disk without room is one error, and leaves what was there.

The room is limited for real, by the system's limit on the size of a file.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from little_room import little_room
from PIL import Image
from tiny_models import awake, small_sd3

from danceflow.data import write_shards
from danceflow.data.buckets import encode_png, write_bucket
from danceflow.errors import DiskSpaceError
from danceflow.models.package import save_package
from danceflow.ops.files import append_text, atomic_directory, atomic_file, write_json
from danceflow.train.log import MetricsFile
from danceflow.train.state import load_checkpoint, save_checkpoint

ROOM = 40_000  # bytes; every writer below needs more for one file


def noise(*shape: int) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0))


def write_checkpoint(path: Path) -> None:
    save_checkpoint(path, {"weights": noise(ROOM)})


def write_shard(path: Path) -> None:
    write_shards._save(path, {"latents": noise(ROOM)})


def write_buckets(path: Path) -> None:
    cell = encode_png(noise(3, 128, 128))
    row: dict[str, Any] = dict.fromkeys(("uid", "category", "variant", "prompt", "spec"), "")
    with atomic_directory(path) as folder:
        write_bucket(folder / "train", [{**row, "source": None, "target": cell}] * 4)


def write_student(path: Path) -> None:
    family = small_sd3()
    with atomic_directory(path) as folder:
        save_package(folder, family, awake(family), {})


def write_picture(path: Path) -> None:
    pixels = (noise(256, 256, 3) * 255).byte().numpy()
    with atomic_file(path) as partial:
        Image.fromarray(pixels).save(partial, format="PNG")


def write_report(path: Path) -> None:
    write_json(path, list(range(ROOM)))


def write_lines(path: Path) -> None:
    append_text(path, "line\n" * ROOM)


@pytest.mark.parametrize("former", [False, True])
@pytest.mark.parametrize(
    "write",
    [
        write_checkpoint,
        write_shard,
        write_buckets,
        write_student,
        write_picture,
        write_report,
        write_lines,
    ],
)
def test_no_room_is_one_error_and_nothing_is_half_written(
    tmp_path: Path, write: Callable[[Path], None], former: bool
) -> None:
    target = tmp_path / "target"
    if former:
        target.write_text("former")
    with little_room(ROOM), pytest.raises(DiskSpaceError) as caught:
        write(target)
    assert str(caught.value).startswith(f"{target}: ")
    assert str(caught.value).endswith("; nothing was kept")
    assert [path.name for path in tmp_path.iterdir()] == ["target"] * former
    assert not former or target.read_text() == "former"
    write(target)
    assert {path.name for path in tmp_path.iterdir()} - {"target.sha256"} == {"target"}
    assert not target.is_file() or target.read_bytes() != b"former"


def test_a_training_record_never_ends_in_half_a_line(tmp_path: Path) -> None:
    record = MetricsFile(tmp_path / "metrics.jsonl", 0)
    row = {"step": 1, "loss": "x" * (ROOM // 3)}
    with little_room(ROOM):
        record.append(row)
        record.append(row)
        with pytest.raises(DiskSpaceError, match=r"metrics\.jsonl: .*; nothing was kept"):
            record.append(row)
    assert list(map(json.loads, record.path.read_text().splitlines())) == [row] * 2


def test_the_last_checkpoint_outlives_a_full_disk(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.safetensors"
    save_checkpoint(path, {"step": 2})
    with little_room(ROOM), pytest.raises(DiskSpaceError):
        save_checkpoint(path, {"step": 4, "weights": noise(ROOM)})
    assert load_checkpoint(path) == {"step": 2}
