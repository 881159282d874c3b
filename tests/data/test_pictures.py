"""Pictures of every kind become upright opaque RGB, and pairs stay aligned."""

import numpy as np
import pytest
from PIL import Image
from user_rows import encoded, picture

from danceflow.data.pictures import Frame, fit_pair, fit_picture, frame_sizes, open_picture
from danceflow.errors import DataError

WHITE = "#ffffff"


def frame(**changes) -> Frame:
    values = {"sizes": ((32, 32),), "fit": "crop", "paper": WHITE, "min_side": 8}
    return Frame(**{**values, **changes})


@pytest.fixture(scope="module")
def photos() -> list[Image.Image]:
    """Two real photographs, 640 x 427 pixels."""
    from sklearn.datasets import load_sample_images

    return [Image.fromarray(image) for image in load_sample_images().images]


def test_orientation_of_the_camera_is_applied(photos) -> None:
    for photo in photos:
        exif = Image.Exif()
        exif[0x0112] = 6  # to be turned by 90 degrees clockwise
        turned = open_picture(encoded(photo, "PNG", exif=exif), WHITE)
        assert turned.size == (photo.height, photo.width)
        assert np.array_equal(np.asarray(turned), np.rot90(np.asarray(photo), k=3))


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
    assert open_picture(data, WHITE).getpixel((0, 0)) == (255, 0, 0) or (254, 0, 0)


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


def test_a_picture_without_end_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(DataError, match="is too large a picture"):
        open_picture(encoded(picture(1, (12, 12))), WHITE)


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
