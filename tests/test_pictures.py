"""Pictures of every kind become upright opaque RGB, pairs stay aligned, bombs are refused unlit."""

import base64
import os
import re
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from user_rows import encoded, picture

from danceflow import pictures
from danceflow.errors import DataError
from danceflow.pictures import (
    Frame,
    data_uri,
    decode,
    fit_pair,
    fit_picture,
    frame_sizes,
    open_picture,
    plain,
    png_base64,
    png_bytes,
    read_base64,
    read_file,
    read_own,
    to_picture,
    to_pixels,
)

WHITE = "#ffffff"


def frame(**changes) -> Frame:
    values = {"sizes": ((32, 32),), "fit": "crop", "paper": WHITE, "min_side": 8}
    return Frame(**{**values, **changes})


@pytest.fixture(scope="module")
def photos() -> list[Image.Image]:
    """Two real photographs, 640 x 427 pixels."""
    from sklearn.datasets import load_sample_images

    return [Image.fromarray(image) for image in load_sample_images().images]


TURNS = {
    1: lambda levels: levels,
    2: np.fliplr,
    3: lambda levels: np.rot90(levels, 2),
    4: np.flipud,
    5: lambda levels: levels.transpose(1, 0, 2),
    6: lambda levels: np.rot90(levels, 3),
    7: lambda levels: np.rot90(levels, 2).transpose(1, 0, 2),
    8: np.rot90,
}
"""By EXIF's word for how the camera was held, what makes its picture upright."""


@pytest.mark.parametrize("orientation", TURNS)
@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF", "JPEG"])
def test_orientation_of_the_camera_is_applied(kind: str, orientation: int) -> None:
    image = picture(1, (24, 16))
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"WEBP": {"lossless": True}, "JPEG": {"quality": 100, "subsampling": 0}}
    turned = open_picture(encoded(image, kind, exif=exif, **options.get(kind, {})), WHITE)
    expected = TURNS[orientation](np.asarray(image))
    assert turned.size == expected.shape[1::-1]
    difference = np.abs(np.asarray(turned, float) - expected)
    assert difference.max() <= (8 if kind == "JPEG" else 0)
    assert plain(turned, WHITE) is turned


def test_orientation_that_stands_behind_the_pixels_or_in_xmp_is_applied() -> None:
    image = picture(1, (24, 16))
    upright = np.rot90(np.asarray(image), 3)
    exif = Image.Exif()
    exif[0x0112] = 6
    whole = encoded(image)
    late = whole[:-12] + chunk(b"eXIf", exif.tobytes()[6:]) + whole[-12:]
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><a tiff:Orientation="6"/></x:xmpmeta>'
    for data in (late, encoded(image, "WEBP", lossless=True, xmp=xmp)):
        assert np.array_equal(np.asarray(open_picture(data, WHITE)), upright)


def chunk(name: bytes, content: bytes) -> bytes:
    """A chunk of a PNG file."""
    return (
        struct.pack(">I", len(content))
        + name
        + content
        + struct.pack(">I", zlib.crc32(name + content))
    )


def png(
    size: tuple[int, int], raw: bytes, colour: int = 2, depth: int = 8, extra: bytes = b""
) -> bytes:
    """A PNG file of any size that holds some bytes of pixels."""
    head = struct.pack(">IIBBBBB", *size, depth, colour, 0, 0, 0)
    parts = chunk(b"IHDR", head) + extra + chunk(b"IDAT", zlib.compress(raw)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


def strip_tiff(size: tuple[int, int], strips: list[bytes], rows_per_strip: int) -> bytes:
    """A TIFF file of RGB strips, not compressed."""
    count, start = len(strips), 8 + 2 + 12 * 9 + 4
    numbers = start + 6
    data = numbers + 8 * count
    places = [data + sum(map(len, strips[:number])) for number in range(count)]
    lengths = [len(strip) for strip in strips]
    entries = [
        (256, 4, 1, size[0]),
        (257, 4, 1, size[1]),
        (258, 3, 3, start),
        (259, 3, 1, 1),
        (262, 3, 1, 2),
        (273, 4, count, numbers if count > 1 else places[0]),
        (277, 3, 1, 3),
        (278, 4, 1, rows_per_strip),
        (279, 4, count, numbers + 4 * count if count > 1 else lengths[0]),
    ]
    table = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    values = struct.pack("<3H", 8, 8, 8) + struct.pack(f"<{2 * count}I", *places, *lengths)
    head = b"II*\0" + struct.pack("<IH", 8, len(entries))
    return head + table + struct.pack("<I", 0) + values + b"".join(strips)


@pytest.mark.parametrize("mode", ["RGB", "L", "1", "P", "CMYK", "YCbCr", "I;16"])
def test_every_mode_becomes_rgb_and_keeps_its_look(photos, mode: str) -> None:
    photo = photos[0]
    if mode == "I;16":
        gray = np.asarray(photo.convert("L"), dtype=np.uint16) * 257
        data, expected = encoded(Image.fromarray(gray)), photo.convert("L")
    elif mode in ("CMYK", "YCbCr"):
        data, expected = encoded(photo.convert(mode), "JPEG", quality=98), photo
    else:
        data, expected = encoded(photo.convert(mode)), photo.convert(mode)
    found = open_picture(data, WHITE)
    assert found.mode == "RGB"
    difference = np.asarray(found, float) - np.asarray(expected.convert("RGB"), float)
    assert np.abs(difference).mean() < 4


@pytest.mark.parametrize("paper", ["#ffffff", "#204060"])
def test_transparency_is_laid_on_paper(paper: str) -> None:
    image = picture(1).convert("RGBA")
    alpha = Image.new("L", image.size, 255)
    alpha.paste(0, (0, 0, 10, 20))
    image.putalpha(alpha)
    ground = tuple(int(paper[i : i + 2], 16) for i in (1, 3, 5))
    for data in (encoded(image), encoded(image, "WEBP", lossless=True, exact=True)):
        found = open_picture(data, paper)
        assert found.getpixel((3, 3)) == ground
        assert found.getpixel((15, 3)) == image.getpixel((15, 3))[:3]
    palette = picture(2).convert("P")
    palette.info["transparency"] = palette.getpixel((4, 4))
    assert open_picture(encoded(palette), paper).getpixel((4, 4)) == ground


def test_gray_with_alpha_and_animations(tmp_path) -> None:
    gray = Image.new("LA", (9, 9), (50, 0))
    assert open_picture(encoded(gray), WHITE).getpixel((0, 0)) == (255, 255, 255)
    frames = [Image.new("RGB", (9, 9), color) for color in ("red", "blue")]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert open_picture(data, WHITE).getpixel((0, 0)) in {(255, 0, 0), (254, 0, 0)}


@pytest.mark.parametrize("paper", ["#ffffff", "#204060"])
def test_a_level_that_stands_for_transparent_is_laid_on_paper(paper: str) -> None:
    """PNG's way of transparency without a channel for it, in every mode that has it."""
    ground = tuple(int(paper[i : i + 2], 16) for i in (1, 3, 5))
    gray16 = png(
        (2, 1), b"\0" + struct.pack(">2H", 1000, 40000), 0, 16, chunk(b"tRNS", b"\x03\xe8")
    )
    cases = {
        "L": encoded(Image.frombytes("L", (2, 1), b"\x07\x09"), transparency=7),
        "RGB": encoded(Image.frombytes("RGB", (2, 1), b"abcdef"), transparency=(97, 98, 99)),
        "1": encoded(Image.frombytes("1", (2, 1), b"\x40"), transparency=0),
        "I;16": gray16,
    }
    right = {"L": (9, 9, 9), "RGB": (100, 101, 102), "1": (255, 255, 255), "I;16": (156, 156, 156)}
    for mode, data in cases.items():
        found = open_picture(data, paper)
        assert (found.getpixel((0, 0)), found.getpixel((1, 0))) == (ground, right[mode]), mode


def test_strips_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    image = picture(1, (40, 50)).convert("RGBA")
    image.putalpha(picture(2, (40, 50)).convert("L"))
    whole = open_picture(encoded(image), "#204060")
    monkeypatch.setattr(pictures, "_STRIP_PIXELS", 100)
    assert open_picture(encoded(image), "#204060").tobytes() == whole.tobytes()


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"no picture", "is no picture"),
        (b"", "is no picture"),
        (encoded(picture(1, (64, 64)))[:-900], "is a damaged picture"),
        (encoded(Image.new("F", (4, 4), 2.5), "TIFF"), "no known range"),
    ],
)
def test_what_is_no_picture_is_told(data: bytes, words: str) -> None:
    with pytest.raises(DataError, match=words):
        open_picture(data, WHITE)


@pytest.mark.parametrize(
    "size", [(1, 100_000_000), (100_000_000, 1), (9460, 9460), (13_300, 13_300), (60_000, 60_000)]
)
@pytest.mark.parametrize("kind", ["PNG", "BMP", "GIF", "TIFF"])
def test_a_picture_without_end_is_refused_by_its_head(size: tuple[int, int], kind: str) -> None:
    """A few bytes that declare many pixels, at which the decoder would work for long."""
    if kind == "PNG":
        data = png(size, bytes(4))
    elif kind == "BMP":
        pixels = struct.pack("<IiiHHIIiiII", 40, *size, 1, 24, 0, 0, 0, 0, 0, 0)
        data = b"BM" + struct.pack("<IHHI", 58, 0, 0, 54) + pixels + bytes(4)
    elif kind == "GIF":
        size = min(size[0], 60_000), min(size[1], 60_000)
        frame = b"," + struct.pack("<HHHHB", 0, 0, *size, 0) + b"\x02\x02\x4c\x01\0;"
        data = b"GIF89a" + struct.pack("<HHBBB", *size, 0x80, 0, 0) + bytes(6) + frame
    else:
        data = strip_tiff(size, [bytes(3)], size[1])
    assert len(data) < 300
    with pytest.raises(DataError, match="is too large a picture: "):
        decode(data)


def test_a_picture_as_large_as_is_read_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "MAX_PIXELS", 144)
    assert open_picture(encoded(picture(1, (12, 12))), WHITE).size == (12, 12)
    with pytest.raises(DataError, match="is too large a picture: 12 x 13 pixels, at most 144 "):
        open_picture(encoded(picture(1, (12, 13))), WHITE)


def test_limits_do_not_hang_on_pillows_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    with pytest.raises(DataError, match="is too large a picture: 60000 x 60000 pixels"):
        decode(png((60_000, 60_000), bytes(4)))


@pytest.mark.parametrize("chunks", [b"zTXt", b"iTXt", b"iCCP"])
def test_text_and_profiles_that_grow_without_end_are_refused(chunks: bytes) -> None:
    grown = zlib.compress(bytes(200_000_000), 9)
    head = {b"zTXt": b"a\0\0", b"iTXt": b"a\0\1\0\0\0", b"iCCP": b"a\0\0"}[chunks]
    data = png((1, 1), bytes(4), extra=chunk(chunks, head + grown))
    with pytest.raises(DataError, match="is a damaged picture: Decompressed data too large"):
        decode(data)


def cut_jpeg(image: Image.Image, share: float, **options) -> bytes:
    """The first part of a JPEG file, closed with an end marker again."""
    data = encoded(image, "JPEG", quality=90, **options)
    start = data.rfind(b"\xff\xda")
    part = data[: start + int((len(data) - start) * share)]
    return part.removesuffix(b"\xff") + b"\xff\xd9"


ROW = np.random.default_rng(7).integers(1, 256, (64, 64 * 3), dtype=np.uint8)
RAW = [b"\0" + row.tobytes() for row in ROW]
CUT = {
    "PNG, one row": png((64, 64), RAW[0]),
    "PNG, all but the last row": png((64, 64), b"".join(RAW[:63])),
    "PNG, gray": png((64, 64), bytes(65), 0),
    "PNG, palette": png((64, 64), bytes(65), 3, extra=chunk(b"PLTE", bytes(range(30)))),
    "PNG, transparent": png((64, 64), b"\0" + bytes(256), 6),
    "PNG, 16 bits": png((64, 64), b"\0" + bytes(128), 0, 16),
    "TIFF, one of eight strips": strip_tiff((64, 64), [ROW[:8].tobytes()], 8),
    "TIFF, all but the last strip": strip_tiff(
        (64, 64), [ROW[at : at + 8].tobytes() for at in range(0, 56, 8)], 8
    ),
    "JPEG, a fifth": cut_jpeg(picture(3, (64, 64)), 0.2),
    "JPEG, most": cut_jpeg(picture(3, (64, 64)), 0.9),
    "JPEG, gray": cut_jpeg(picture(3, (64, 64)).convert("L"), 0.5),
    "JPEG, CMYK": cut_jpeg(picture(3, (64, 64)).convert("CMYK"), 0.5),
    "JPEG, with restarts": cut_jpeg(picture(3, (64, 64)), 0.5, restart_marker_blocks=4),
}


@pytest.mark.parametrize("name", CUT)
def test_a_picture_that_ends_early_though_in_order_is_refused(name: str) -> None:
    with pytest.raises(DataError, match="is a damaged picture: its data ends early"):
        decode(CUT[name])


SMOOTH = Image.fromarray(np.add.outer(np.arange(64), np.arange(96)).astype(np.uint8))
SCENES = {"noise": picture(3, (64, 64)), "smooth": SMOOTH.convert("RGB"), "gray": SMOOTH}


@pytest.mark.parametrize("name", SCENES)
def test_a_progressive_jpeg_that_lacks_its_last_scans_is_refused(name: str) -> None:
    """Closed with an end marker it shows the whole picture, only coarser."""
    data = encoded(SCENES[name], "JPEG", quality=90, progressive=True)
    scans = [found.start() for found in re.finditer(rb"\xff\xda", data)]
    assert len(scans) >= 6
    for at in scans[1:]:
        with pytest.raises(DataError, match="is a damaged picture: its data ends early"):
            decode(data[:at] + b"\xff\xd9")
    for share in (0.2, 0.5, 0.8):
        with pytest.raises(DataError, match="is a damaged picture"):
            decode(cut_jpeg(SCENES[name], share, progressive=True))


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
@pytest.mark.parametrize("subsampling", [0, 2])
def test_a_whole_progressive_jpeg_is_read(mode: str, subsampling: int) -> None:
    scenes = [*SCENES.values(), Image.new("RGB", (40, 30)), Image.new("RGB", (40, 30), "gray")]
    for scene in scenes:
        options = {"progressive": True, "subsampling": subsampling}
        data = encoded(scene.convert(mode), "JPEG", **options)
        assert decode(data).size == scene.size
        assert decode(data + b"what a camera adds").size == scene.size


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.95])
def test_a_file_that_breaks_off_is_refused(kind: str, share: float) -> None:
    data = encoded(picture(1, (64, 64)), kind)
    with pytest.raises(DataError):
        decode(data[: int(len(data) * share)])


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "LA", "1", "P", "CMYK", "I;16"])
def test_a_whole_picture_of_a_level_that_may_be_made_up_is_read(mode: str) -> None:
    """Black, clear and mid-gray pictures look like missing ones and are none."""
    for level in (0, 127, 128):
        image = Image.new(mode, (40, 30), level if mode in {"1", "P", "L", "I;16"} else None)
        if len(image.getbands()) > 1:
            image = Image.merge(mode, [Image.new("L", (40, 30), level)] * len(image.getbands()))
        kinds = {"CMYK": ["JPEG", "TIFF"], "RGB": ["PNG", "JPEG", "TIFF", "WEBP", "BMP"]}
        for kind in kinds.get(mode, ["PNG"]):
            assert decode(encoded(image, kind)).size == (40, 30)
    frames = [Image.new("RGBA", (9, 9)), Image.new("RGBA", (9, 9), "red")]
    for kind in ("PNG", "GIF", "WEBP", "TIFF"):
        data = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
        assert open_picture(data, "#204060").getpixel((8, 8)) == (0x20, 0x40, 0x60), kind


def test_a_gif_whose_first_image_is_smaller_than_its_screen_is_read() -> None:
    data = bytearray(encoded(picture(1, (9, 9)), "GIF"))
    data[6:10] = struct.pack("<HH", 12, 12)
    assert decode(bytes(data)).size == (12, 12)


@pytest.mark.parametrize(
    "data",
    [
        b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>',
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n",
        encoded(picture(1), "PPM"),
        encoded(picture(1), "ICO"),
        encoded(picture(1), "JPEG2000"),
        encoded(picture(1), "TGA"),
        encoded(picture(1), "PCX"),
    ],
)
def test_kinds_that_are_not_named_are_not_opened(data: bytes) -> None:
    with pytest.raises(DataError, match="is no picture, or of another kind than BMP, GIF, JPEG"):
        decode(data)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
def test_damage_anywhere_is_one_error_or_none(kind: str) -> None:
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "words"
    options = {} if kind in {"GIF", "BMP"} else {"exif": exif}
    whole = encoded(picture(1, (12, 9)), kind, **options)
    draw = np.random.default_rng(3)
    for _ in range(300):
        data = bytearray(whole)
        for at in draw.integers(0, len(data), draw.integers(1, 6)):
            data[at] = draw.integers(0, 256)
        try:
            assert open_picture(bytes(data), WHITE).mode == "RGB"
        except DataError:
            continue


# --------------------------------------------------------------------------------- files and text


def test_a_file_is_read_whole(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"some bytes")
    (tmp_path / "link").symlink_to("a.png")
    assert read_file(tmp_path / "a.png") == read_file(tmp_path / "link") == b"some bytes"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("pipe", "is no regular file"),
        ("folder", "cannot be read: Is a directory"),
        ("/dev/zero", "is no regular file"),
        ("nowhere.png", "cannot be read: No such file or directory"),
        ("dead", "cannot be read: No such file or directory"),
        ("nul\0.png", "cannot be read: embedded null byte"),
        ("n" * 300, "cannot be read: File name too long"),
        ("large", "is too large a file: more than 64 MiB"),
    ],
)
def test_what_is_no_file_of_a_picture_is_told(tmp_path: Path, name: str, words: str) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "dead").symlink_to("nothing")
    with (tmp_path / "large").open("wb") as file:
        file.truncate(pictures.MAX_BYTES + 1)
    with pytest.raises(DataError, match=words):
        read_file(tmp_path / name)


CONTENT = encoded(picture(8, (30, 30)))


@pytest.mark.parametrize(
    "form",
    [
        lambda text: text,
        lambda text: f"data:image/png;base64,{text}",
        lambda text: f"DATA:image/jpeg;name=a.jpg;Base64,{text}",
        lambda text: f"data:;base64,{text}",
        lambda text: base64.encodebytes(CONTENT).decode(),
        lambda text: "data:image/png;base64,\r\n" + text.replace("A", "A\r\n"),
        lambda text: f"  {text}\n",
        lambda text: text.rstrip("="),
        lambda text: base64.urlsafe_b64encode(CONTENT).decode(),
    ],
)
def test_base64_is_read_as_people_send_it(form) -> None:
    assert read_base64(form(png_base64(CONTENT))) == CONTENT


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("§§ secret", "is no base64 text"),
        ("photo.jpg", "is no base64 text"),
        ("abcde", "is no base64 text"),
        ("ab=cdefg", "is no base64 text"),
        ("data:image/svg+xml,<svg/>", "is a data: address that holds no base64"),
        ("data:image/png;base64", "is a data: address that holds no base64"),
        ("A" * 90_000_000, "is too large a file: more than 64 MiB"),
    ],
)
def test_text_that_is_no_base64_is_told_and_not_repeated(text: str, words: str) -> None:
    with pytest.raises(DataError, match=f"^{words}$"):
        read_base64(text)


def test_what_is_written_is_read_again() -> None:
    image = picture(4, (17, 9))
    for level in (1, 9):
        data = png_bytes(image, level)
        assert read_own(data).tobytes() == open_picture(data, WHITE).tobytes() == image.tobytes()
        assert read_base64(data_uri(data)) == data
    with pytest.raises(DataError, match="is a damaged picture"):
        read_own(png_bytes(image)[:-30])


def test_pixels_and_pictures_are_inverse() -> None:
    image = picture(4, (17, 9))
    pixels = to_pixels(image)
    assert (pixels.shape, pixels.dtype) == ((3, 9, 17), torch.float32)
    assert 0 <= float(pixels.min()) <= float(pixels.max()) <= 1
    assert to_picture(pixels).tobytes() == image.tobytes()
    levels = torch.tensor([-0.5, 0.1, 0.5, 1.7]).expand(3, 1, 4)
    assert np.asarray(to_picture(levels))[0, :, 0].tolist() == [0, 26, 128, 255]


def test_frames_have_the_area_of_the_square_one() -> None:
    sizes = frame_sizes(512, ("1:1", "3:2", "2:3", "16:9"), 16)
    assert sizes[0] == (512, 512)
    assert sizes[1] == (sizes[2][1], sizes[2][0])
    for (width, height), ratio in zip(sizes, (1, 1.5, 2 / 3, 16 / 9), strict=True):
        assert width % 16 == height % 16 == 0
        assert width * height == pytest.approx(512**2, rel=0.05)
        assert width / height == pytest.approx(ratio, rel=0.05)


def test_the_nearest_aspect_is_chosen(photos) -> None:
    sizes = frame_sizes(96, ("1:1", "3:2", "2:3"), 8)
    wide = frame(sizes=sizes)
    assert wide.size_for(photos[0]) == sizes[1]
    assert wide.size_for(photos[0].rotate(90, expand=True)) == sizes[2]
    assert wide.size_for(Image.new("RGB", (100, 95))) == sizes[0]


def test_a_crop_takes_the_middle_and_a_pad_keeps_all(photos) -> None:
    photo = photos[1]
    crop = fit_picture(photo, (100, 100), frame(fit="crop"))
    left = (photo.width - photo.height) // 2
    middle = photo.crop((left, 0, left + photo.height, photo.height))
    difference = np.asarray(crop, float) - np.asarray(middle.resize((100, 100), 1), float)
    assert np.abs(difference).mean() < 3
    pad = np.asarray(fit_picture(photo, (100, 100), frame(fit="pad", paper="#ff0000")))
    assert (pad[0] == (255, 0, 0)).all()
    assert not (pad[50] == (255, 0, 0)).all()


@pytest.mark.parametrize("fit", ["crop", "pad"])
def test_source_and_target_stay_aligned(photos, fit: str) -> None:
    """An edit of one spot is at the same spot afterwards, whatever the target's own size."""
    source = photos[0]
    target = source.copy()
    target.paste((255, 0, 255), (300, 200, 340, 230))
    half = target.resize((320, 214), Image.Resampling.LANCZOS)
    for answer in (target, half):
        one, other = fit_pair(source, answer, frame(sizes=((64, 64),), fit=fit))
        assert one is not None
        assert one.size == other.size == (64, 64)
        changed = np.abs(np.asarray(one, float) - np.asarray(other, float)).max(-1) > 90
        rows, columns = np.nonzero(changed)
        scale = 64 / 427 if fit == "crop" else 64 / 640
        shift_x, shift_y = ((640 - 427) / 2, 0) if fit == "crop" else (0, (427 - 640) / 2)
        assert columns.mean() == pytest.approx((320 - shift_x) * scale, abs=1.5)
        assert rows.mean() == pytest.approx((215 - shift_y) * scale, abs=1.5)


def test_pairs_that_cannot_be_aligned_are_told() -> None:
    with pytest.raises(DataError, match="source is 40 x 20 pixels and target 20 x 20"):
        fit_pair(picture(1, (40, 20)), picture(2, (20, 20)), frame())
    with pytest.raises(DataError, match="target is 7 x 20 pixels, less than 8"):
        fit_pair(None, picture(2, (7, 20)), frame())


def test_a_picture_of_the_right_size_keeps_its_pixels() -> None:
    image = picture(3, (32, 32))
    assert fit_picture(image, (32, 32), frame()) is image


def test_a_picture_that_would_vanish_is_told() -> None:
    with pytest.raises(DataError, match="9000 x 8 pixels are too long for a frame of 32 x 32"):
        fit_pair(None, picture(3, (9000, 8)), frame(fit="pad"))
    assert fit_pair(None, picture(3, (9000, 8)), frame(fit="crop"))[1].size == (32, 32)
