"""A picture is the same tensor in training, in ``danceflow edit`` and in the served model.

And what one of the three refuses, all refuse, for the same reason.
"""

import base64
import json
import os
import struct
import subprocess
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from mlflow.exceptions import MlflowException
from mlflow.pyfunc import PythonModelContext
from PIL import Image
from torch import Tensor
from user_rows import encoded, picture, row_params

from danceflow import cli
from danceflow.data.buckets import images_of, read_bucket, write_bucket
from danceflow.data.intake.reader import BadRow, CheckedRow, RowReader
from danceflow.data.intake.sources import RawRecord
from danceflow.errors import DataError
from danceflow.pictures import frame_sizes
from danceflow.registry.open import folder_digest
from danceflow.registry.serving_model import MAX_ROWS, MAX_STEPS, ServedStudent

RATIOS = ("1:1", "3:2", "2:3")
SIZES = [(height, width) for width, height in frame_sizes(24, RATIOS, 4)]
FRAMINGS = [{"fit": "crop", "paper": "#ffffff"}, {"fit": "pad", "paper": "#204060"}]


def chunk(name: bytes, content: bytes) -> bytes:
    end = struct.pack(">I", zlib.crc32(name + content))
    return struct.pack(">I", len(content)) + name + content + end


def png(size: tuple[int, int], raw: bytes, colour: int, depth: int, extra: bytes = b"") -> bytes:
    head = struct.pack(">IIBBBBB", *size, depth, colour, 0, 0, 0)
    parts = chunk(b"IHDR", head) + extra + chunk(b"IDAT", zlib.compress(raw)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


def cases() -> Iterator[tuple[str, bytes]]:
    """Every way in which a picture can be something else than upright opaque RGB."""
    photo = picture(1, (40, 28))
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        for kind in ("JPEG", "PNG", "WEBP", "TIFF"):
            yield f"{kind} turned {orientation}", encoded(photo, kind, exif=exif)
    exif[0x0112] = 6
    clear = photo.convert("RGBA")
    clear.putalpha(picture(2, (40, 28)).convert("L"))
    for kind in ("PNG", "WEBP", "TIFF"):
        yield f"{kind} RGBA", encoded(clear, kind)
        yield f"{kind} RGBA turned", encoded(clear, kind, exif=exif)
    yield "PNG LA", encoded(clear.convert("LA"))
    yield "TIFF LA", encoded(clear.convert("LA"), "TIFF")
    palette = photo.convert("P", palette=Image.Palette.ADAPTIVE, colors=16)
    yield "PNG P", encoded(palette)
    yield "PNG P with one clear", encoded(palette, transparency=3)
    yield "PNG P with alpha", encoded(palette, transparency=bytes(range(0, 256, 16)))
    yield "GIF", encoded(palette, "GIF")
    yield "GIF with one clear", encoded(palette, "GIF", transparency=3)
    gray = photo.convert("L")
    yield "PNG L with one clear", encoded(gray, transparency=gray.getpixel((20, 14)))
    yield "PNG RGB with one clear", encoded(photo, transparency=photo.getpixel((20, 14)))
    yield "PNG 1 with one clear", encoded(photo.convert("1"), transparency=0)
    levels = np.random.default_rng(5).integers(0, 65536, (28, 40), dtype=np.uint16)
    for kind in ("PNG", "TIFF"):
        yield f"{kind} 16-bit gray", encoded(Image.fromarray(levels), kind)
    raw = b"".join(b"\0" + row.astype(">u2").tobytes() for row in levels)
    key = chunk(b"tRNS", struct.pack(">H", levels[14, 20]))
    yield "PNG 16-bit gray with one clear", png((40, 28), raw, 0, 16, key)
    deep = np.random.default_rng(6).integers(0, 65536, (28, 40 * 4), dtype=np.uint16)
    raw = b"".join(b"\0" + row.astype(">u2").tobytes() for row in deep)
    yield "PNG 16-bit RGBA", png((40, 28), raw, 6, 16)
    for mode in ("CMYK", "YCbCr", "L"):
        yield f"JPEG {mode}", encoded(photo.convert(mode), "JPEG", exif=exif)
    for mode in ("CMYK", "YCbCr", "1", "P"):
        yield f"TIFF {mode}", encoded(photo.convert(mode), "TIFF")
    yield "BMP", encoded(photo, "BMP")
    frames = [clear, picture(9, (40, 28)).convert("RGBA")]
    for kind in ("GIF", "PNG", "WEBP", "TIFF"):
        yield f"{kind} of two images", encoded(frames[0], kind, save_all=True, append_images=frames)
    yield "PNG very wide", encoded(picture(3, (90, 12)))


CASES = dict(cases())


@pytest.fixture
def student(student_folder: Path, request: pytest.FixtureRequest) -> Path:
    """The folder of a student whose training had a framing."""
    meta = {"image_sizes": SIZES, "framing": request.param}
    (student_folder / "weights.json").write_text(json.dumps({"strength": 1.0, "meta": meta}))
    return student_folder


def trained(data: bytes, framing: dict[str, str], folder: Path) -> Tensor:
    """What a stage of training reads of a picture to edit."""
    params = row_params(aspect_ratios=list(RATIOS), size_multiple=4, **framing)
    params = params.model_copy(update={"data": params.data.model_copy(update={"image_size": 24})})
    cells = {"id": "7", "kind": "object swap", "text": "red", "before": data, "after": data}
    row = RowReader(params.data, folder).read(RawRecord("row 1", 0, cells))
    if isinstance(row, BadRow):
        raise DataError(row.reason)
    assert isinstance(row, CheckedRow)
    cell = {"bytes": row.source, "path": None}
    texts = {name: getattr(row, name) for name in ("uid", "category", "variant", "prompt", "spec")}
    write_bucket(folder / "bucket" / "train", [{**texts, "source": cell, "target": cell}])
    return images_of(read_bucket(folder / "bucket", "train"), [0], "source")


def edited(data: bytes, student: Path, folder: Path) -> None:
    """Run ``danceflow edit``."""
    path = folder / "picture"
    path.write_bytes(data)
    command = ["edit", str(path), "red", "--from", str(student), "--out", str(folder / "out")]
    cli.app(command, standalone_mode=False)


def opened(student: Path) -> ServedStudent:
    """The served model as MLflow opens it."""
    served = ServedStudent()
    config = {"digest": folder_digest(student), "device": "cpu"}
    served.load_context(PythonModelContext({"student": str(student)}, config))
    return served


def asked(served: ServedStudent, *images: object, **params: object) -> pd.DataFrame:
    rows = pd.DataFrame({"prompt": ["red"] * len(images), "image": list(images)})
    return served.predict(None, rows, params)


@pytest.mark.parametrize("student", FRAMINGS, indirect=True, ids=lambda item: item["fit"])
def test_a_picture_is_one_tensor_wherever_it_comes_in(
    student: Path, seen: list[Tensor], tmp_path: Path
) -> None:
    framing = json.loads((student / "weights.json").read_text())["meta"]["framing"]
    served = opened(student)
    for number, (name, data) in enumerate(CASES.items()):
        folder = tmp_path / str(number)
        folder.mkdir()
        expected = trained(data, framing, folder)
        seen.clear()
        edited(data, student, folder)
        asked(served, base64.encodebytes(data).decode())
        assert len(seen) == 2, name
        for found in seen:
            assert torch.equal(found, expected), name


@pytest.mark.parametrize("student", FRAMINGS[:1], indirect=True, ids=["crop"])
def test_what_training_cannot_use_nothing_else_takes(student: Path, tmp_path: Path) -> None:
    """Bombs, cut pictures and other kinds, with one reason at the three doors."""
    served = opened(student)
    bad = {
        "of 100,000,000 pixels": png((1, 100_000_000), bytes(4), 2, 8),
        "of 177,000,000 pixels": png((13_300, 13_300), bytes(4), 2, 8),
        "cut after a row": png((40, 28), bytes(121), 2, 8),
        "cut off": encoded(picture(1, (40, 28)))[:-99],
        "SVG": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        "of another kind": encoded(picture(1, (40, 28)), "PPM"),
        "without a known range": encoded(Image.new("F", (40, 28), 2.5), "TIFF"),
        "text": b"no picture",
    }
    for number, (name, data) in enumerate(bad.items()):
        folder = tmp_path / str(number)
        folder.mkdir()
        with pytest.raises(DataError) as refused:
            trained(data, FRAMINGS[0], folder)
        reason = str(refused.value)
        with pytest.raises(DataError) as by_edit:
            edited(data, student, folder)
        assert str(by_edit.value).endswith(f": {reason}"), name
        assert not (folder / "out").exists()
        good = base64.b64encode(CASES["BMP"]).decode()
        with pytest.raises(MlflowException) as by_server:
            asked(served, good, base64.b64encode(data).decode())
        assert by_server.value.message == f"row 1, image: {reason}", name
        assert by_server.value.get_http_status_code() == 400


@pytest.mark.parametrize("student", FRAMINGS[:1], indirect=True, ids=["crop"])
@pytest.mark.parametrize("name", ["pipe", "/dev/zero", "folder", "nowhere"])
def test_what_is_no_file_is_not_read(student: Path, tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    with pytest.raises(DataError, match=f"{name}: (is no regular file|cannot be read: )"):
        cli.app(["edit", str(tmp_path / name), "red", "--from", str(student)], False)


@pytest.mark.parametrize("student", FRAMINGS[:1], indirect=True, ids=["crop"])
@pytest.mark.parametrize(
    ("rows", "params", "message"),
    [
        ({"prompt": ["red", " "]}, {}, "row 1, prompt: is empty"),
        ({"prompt": ["red", None]}, {}, "row 1, prompt: is empty"),
        ({"prompt": ["red", float("nan")]}, {}, "row 1, prompt: is empty"),
        ({"prompt": [5]}, {}, "row 0, prompt: should be text, found int"),
        ({"prompt": ["red"], "image": [5]}, {}, "row 0, image: should be base64 text, found int"),
        ({"prompt": ["red"], "image": [["a"]]}, {}, "row 0, image: should be base64 text, found"),
        ({"prompt": ["red"], "image": ["secret?words"]}, {}, "row 0, image: is no base64 text$"),
        ({"prompt": ["red"] * (MAX_ROWS + 1)}, {}, f"{MAX_ROWS + 1} rows, at most {MAX_ROWS}"),
        ({"prompt": ["red"]}, {"steps": MAX_STEPS + 1}, f"steps: {MAX_STEPS + 1} are asked for"),
        ({"prompt": ["red"]}, {"steps": -1}, "number of steps should be at least 1, found -1"),
        ({"prompt": ["red"]}, {"guidance": float("nan")}, "guidance should be a number"),
        ({"prompt": ["red"]}, {"size": "9"}, "'9': write a size as WIDTHxHEIGHT"),
    ],
)
def test_a_bad_request_is_told_by_row_and_field(
    student: Path, rows: dict, params: dict, message: str
) -> None:
    with pytest.raises(MlflowException, match=message) as refused:
        opened(student).predict(None, pd.DataFrame(rows), params)
    assert refused.value.get_http_status_code() == 400
    assert "secret" not in refused.value.message


@pytest.mark.parametrize("student", FRAMINGS[:1], indirect=True, ids=["crop"])
def test_an_empty_image_is_none(student: Path, seen: list[Tensor]) -> None:
    answer = asked(opened(student), None, "", float("nan"), pd.NA)
    assert len(answer) == 4
    assert not seen


HELD = """
import base64, io, resource, sys
from PIL import Image
from danceflow.pictures import decode, read_base64
from danceflow.registry.student import Student

class Package:
    meta = {}
    image_sizes = ((24, 24),)

from danceflow.registry.serving_model import ServedStudent
buffer = io.BytesIO()
Image.new("L", (6000, 6000), 90).save(buffer, "PNG")
text = base64.b64encode(buffer.getvalue()).decode()
served = ServedStudent()
served._student = Student(Package())
held = []
for row in range(int(sys.argv[1])):
    held.append(served._sources(row, {"image": text}))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def test_large_pictures_of_a_request_are_not_held_together() -> None:
    """Six pictures of 36 million pixels need no more memory than one."""

    def peak(num_rows: int) -> int:
        done = subprocess.run(
            [sys.executable, "-c", HELD, str(num_rows)], capture_output=True, text=True, check=True
        )
        return int(done.stdout.split()[-1]) * 1024

    assert peak(6) - peak(1) < 36_000_000 * 3
