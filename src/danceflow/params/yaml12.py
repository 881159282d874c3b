"""YAML as DVC reads it: by YAML 1.2, ``1e-3`` is a number and ``no`` is a word.

Only plain data leaves it: what JSON can hold, of a size that a person would write. The only module
that knows YAML.
"""

import re
from pathlib import Path
from typing import Any

import yaml

from danceflow.errors import ConfigError

_MAX_VALUES = 1_000_000  # of a whole file, its aliases written out: nine lines may mean a billion
_MAX_DEPTH = 100
_MAX_DIGITS = 400  # what a float can be has fewer


def read_yaml(path: Path) -> Any:
    """Return the plain data of a YAML file (YAML 1.2 values).

    Raises:
        ConfigError: The file cannot be read, is no YAML or repeats a key.
    """
    try:
        return _load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None


def read_value(text: str) -> Any:
    """Return the plain data of YAML text.

    Raises:
        ValueError: The text is no YAML or repeats a key.
    """
    try:
        return _load(text)
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from None


def _load(text: str) -> Any:
    # The loader extends the safe one: it builds plain data only.
    try:
        data = yaml.load(text, Loader=_Loader)  # noqa: S506
    except RecursionError:
        raise yaml.YAMLError("is nested too deeply") from None
    _require_small(data)
    return data


def _require_small(data: Any) -> None:
    """Raise ``YAMLError`` where aliases make data endless, or far larger than its file."""
    waiting, count = [(data, 0)], 0
    while waiting:
        value, depth = waiting.pop()
        count += 1
        if count > _MAX_VALUES or depth > _MAX_DEPTH:
            raise yaml.YAMLError("is nested too deeply, or its aliases mean too many values")
        if isinstance(value, dict | list):
            inner = value.values() if isinstance(value, dict) else value
            waiting += [(item, depth + 1) for item in inner]


_PLAIN = ("null", "bool", "int", "float", "str", "seq", "map")


class _Loader(yaml.SafeLoader):
    """Builds plain data with the value rules of YAML 1.2's core schema; a repeated key raises."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012
    # Without those of dates, sets and bytes, which no parameter is: their tags are errors.
    yaml_constructors = {  # noqa: RUF012
        tag: make
        for tag, make in yaml.SafeLoader.yaml_constructors.items()
        if tag is None or tag.rpartition(":")[2] in _PLAIN
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        self.flatten_mapping(node)
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                raise yaml.constructor.ConstructorError(
                    None, None, f"key {key!r} should be a word", key_node.start_mark
                )
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"{key!r} stands here twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


def _construct_int(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int:
    text = loader.construct_scalar(node)
    try:
        if len(text) > _MAX_DIGITS:
            raise ValueError
        return int(text)
    except ValueError:
        raise yaml.constructor.ConstructorError(
            None, None, f"{text[:40]!r} is no number of a usual size", node.start_mark
        ) from None


for _tag, _pattern, _first in (
    ("null", r"null|Null|NULL|~|", "nN~"),
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?[0-9]+", "-+0123456789"),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", "-+.0123456789"),
    ("merge", r"<<", "<"),
):
    _Loader.add_implicit_resolver(
        f"tag:yaml.org,2002:{_tag}", re.compile(rf"^(?:{_pattern})$"), [*_first]
    )
_Loader.add_implicit_resolver("tag:yaml.org,2002:null", re.compile(r"^$"), [""])
_Loader.add_constructor("tag:yaml.org,2002:int", _construct_int)
