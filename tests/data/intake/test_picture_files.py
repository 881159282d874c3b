"""A row reaches regular files below its source's folder, and nothing else on the machine."""

import os
import stat
from pathlib import Path

import pytest

from danceflow.data.intake.picture_files import PictureFiles
from danceflow.errors import DataError
from danceflow.pictures import MAX_BYTES


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A source's folder with all that may lie in one, beside what is none of its rows' business."""
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "1.png").write_bytes(b"secret")
    (tmp_path / "pets-2").mkdir()
    (tmp_path / "pets-2" / "1.png").write_bytes(b"of a folder whose name begins alike")
    inside = tmp_path / "pets"
    (inside / "images").mkdir(parents=True)
    (inside / "images" / "1.png").write_bytes(b"one")
    (inside / "link.png").symlink_to("images/1.png")
    (inside / "more").symlink_to("images")
    (inside / "out.png").symlink_to(tmp_path / "outside" / "1.png")
    (inside / "out").symlink_to("../outside")
    (inside / "dead.png").symlink_to("nowhere.png")
    (inside / "round.png").symlink_to("round.png")
    (inside / "zero.png").symlink_to("/dev/zero")
    os.mkfifo(inside / "pipe.png")
    os.mknod(inside / "socket.png", stat.S_IFSOCK | 0o600)
    with (inside / "huge.png").open("wb") as file:
        file.truncate(MAX_BYTES + 1)
    (tmp_path / "linked").symlink_to(inside)
    return inside


@pytest.mark.parametrize(
    "name",
    ["images/1.png", "./images//1.png", "images/../images/1.png", "link.png", "more/1.png"],
)
@pytest.mark.parametrize("start", ["pets", "linked", "pets/../linked"])
def test_files_below_the_folder_are_read(folder: Path, name: str, start: str) -> None:
    assert PictureFiles(folder.parent / start).read(name) == b"one"


@pytest.mark.parametrize("start", ["pets", "linked"])
def test_a_library_may_give_whole_paths_below_the_folder(folder: Path, start: str) -> None:
    path = folder.parent / start / "images" / "1.png"
    assert PictureFiles(folder.parent / start).read(str(path)) == b"one"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("../outside/1.png", "leads out of the source's folder"),
        ("../pets-2/1.png", "leads out of the source's folder"),
        ("images/../../outside/1.png", "leads out of the source's folder"),
        ("out.png", "leads out of the source's folder"),
        ("out/1.png", "leads out of the source's folder"),
        ("zero.png", "leads out of the source's folder"),
        ("/dev/zero", "leads out of the source's folder"),
        ("/etc/passwd", "leads out of the source's folder"),
        ("pipe.png", "is no regular file"),
        ("socket.png", "is no regular file"),
        (".", "is no regular file"),
        ("images", "is no regular file"),
        ("huge.png", "is too large a file: more than 64 MiB"),
        ("nowhere.png", "No such file"),
        ("dead.png", "No such file"),
        ("images/1.png/2.png", "Not a directory"),
        ("round.png", "symbolic links"),
        ("a" * 300, r"File name too long"),
        ("a" * 300_000, r"^a{80}\.\.\. \(300000 characters\): is too long for a path"),
    ],
)
def test_what_is_no_picture_of_the_source_is_told(folder: Path, name: str, words: str) -> None:
    files = PictureFiles(folder)
    with pytest.raises(DataError, match=words) as error:
        files.read(name)
    assert len(str(error.value)) < 200
    assert str(folder) not in str(error.value)
    assert files.still_hold(files.seen)


def test_a_data_set_known_by_name_has_no_files(folder: Path) -> None:
    with pytest.raises(DataError, match="a data set that is known by name has no files"):
        PictureFiles(None).read(str(folder / "images" / "1.png"))


@pytest.mark.parametrize("before", [b"one", None])
@pytest.mark.parametrize("after", [b"two", b"three", None])
def test_a_change_is_seen_by_content(
    tmp_path: Path, before: bytes | None, after: bytes | None
) -> None:
    path = tmp_path / "x.png"

    def put(content: bytes | None) -> None:
        path.unlink(missing_ok=True)
        if content is not None:
            path.write_bytes(content)
            os.utime(path, ns=(0, 0))

    files = PictureFiles(tmp_path)
    put(before)
    if before is None:
        with pytest.raises(DataError):
            files.read("x.png")
    else:
        files.read("x.png")
    seen = dict(files.seen)
    assert files.still_hold(seen)
    put(after)
    assert files.still_hold(seen) == (before == after)
    put(before)
    assert files.still_hold(seen)
