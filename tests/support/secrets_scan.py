"""Planted secrets, and whether a byte of them lies anywhere."""

import base64
import gzip
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from urllib.parse import quote


def spellings(value: str) -> set[bytes]:
    """Return how a secret may be written down: as it is, quoted, in base64 and in hexadecimal."""
    raw = value.encode()
    found = {raw, quote(value, safe="").encode(), raw.hex().encode()}
    for offset in range(3):  # where it stands in a longer text that was encoded
        coded = base64.b64encode(b"\0" * offset + raw)
        found.add(coded[4 if offset else 0 : len(coded) // 4 * 4 - 4])
    return found


def holders(planted: Mapping[str, str], texts: Iterable[tuple[str, bytes]]) -> list[str]:
    """Return which secrets stand in which texts, by the names of both.

    Args:
        planted: the secrets by name.
        texts: by name.
    """
    wanted = {name: spellings(value) for name, value in planted.items()}
    return sorted(
        f"{name} in {place}"
        for place, text in texts
        for name, words in wanted.items()
        if any(word in text for word in words)
    )


def files(folder: Path, *left_out: Path) -> Iterator[tuple[str, bytes]]:
    """Yield every file below a folder, hidden ones too; what is packed also unpacked.

    Args:
        folder: where to look.
        left_out: files and folders that are allowed to hold secrets.
    """
    for path in sorted(folder.rglob("*")):
        if path.is_symlink() or not path.is_file():
            continue
        if any(path == out or out in path.parents for out in left_out):
            continue
        data = path.read_bytes()
        yield str(path), data
        if data[:2] == b"\x1f\x8b":
            yield f"{path} (unpacked)", gzip.decompress(data)


def git_objects(root: Path) -> Iterator[tuple[str, bytes]]:
    """Yield the content of every object of a repository, those that nothing names too."""
    listed = subprocess.run(
        ["git", "cat-file", "--batch-all-objects", "--batch-check=%(objectname)"],
        cwd=root,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    content = subprocess.run(
        ["git", "cat-file", "--batch"], cwd=root, input=listed.encode(), capture_output=True,
        check=True,
    ).stdout  # fmt: skip
    yield f"git objects of {root}", content
    for path in sorted((root / ".git").rglob("*")):
        if path.is_file() and "objects" not in path.parts:
            yield str(path), path.read_bytes()
