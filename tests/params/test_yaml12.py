"""YAML is read as DVC reads it, and bad YAML is told."""

from pathlib import Path

import pytest

from danceflow.errors import ConfigError
from danceflow.params.yaml12 import read_value, read_yaml


def test_numbers_and_words_are_read_as_dvc_reads_them(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text("a: 1e-3\nb: no\nc: 010\nd: 2024-01-01\ne: .5\nf: ~\ng:\nh: true\ni: -2\n")
    assert read_yaml(path) == {
        "a": 0.001,
        "b": "no",
        "c": 10,
        "d": "2024-01-01",
        "e": 0.5,
        "f": None,
        "g": None,
        "h": True,
        "i": -2,
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\na: 2\n", "'a' stands here twice"),
        ("1: a\n", "key 1 should be a word"),
        ("a: [1\n", "not valid YAML"),
        ("a: !!python/object:os.system {}\n", "not valid YAML"),
    ],
)
def test_bad_yaml_is_told(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message) as caught:
        read_yaml(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_unreadable_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        read_yaml(tmp_path / "params.yaml")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_yaml(tmp_path)
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_yaml(tmp_path / "binary")


def test_a_value_is_read_as_in_a_file() -> None:
    assert read_value("[1e-3, no, {a: ~}]") == [0.001, "no", {"a": None}]
    with pytest.raises(ValueError, match="stands here twice"):
        read_value("{a: 1, a: 2}")
