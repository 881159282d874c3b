"""Reads a params file into ``Params``: every problem at once, each with its place."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from pydantic import TypeAdapter, ValidationError

from danceflow.errors import ConfigError
from danceflow.params.problems import (
    Problem,
    explain,
    kind_of,
    message,
    missing,
    nearest,
    unknown_key,
)
from danceflow.params.rules import RULES
from danceflow.params.sections import Params, Section
from danceflow.params.yaml12 import read_value, read_yaml

_Section = TypeVar("_Section", bound=Section)


def load_params(path: Path) -> Params:
    """Return the parameters of a file.

    Raises:
        ConfigError: The file is missing or no YAML, or some parameters are wrong; the message
            lists all of them with their dotted paths.
    """
    return parse_params(read_yaml(path), str(path))


def parse_params(data: Any, source: str) -> Params:
    """Return the parameters held by plain data.

    Args:
        data: What ``read_yaml`` returns.
        source: Name of the file, for messages.

    Raises:
        ConfigError: As ``load_params``.
    """
    if not isinstance(data, dict):
        raise ConfigError(f"{source}: should hold sections, found {kind_of(data)}")
    problems = [
        Problem(name, unknown_key(name, Params.model_fields))
        for name in data
        if name not in Params.model_fields
    ]
    mistyped = {nearest(p.path, Params.model_fields) for p in problems}
    sections: dict[str, Any] = {}
    for name, section_type in get_type_hints(Params, include_extras=True).items():
        if name not in Params.model_fields:
            continue
        if name in data:
            try:
                sections[name] = TypeAdapter(section_type).validate_json(_as_json(data[name]))
            except TypeError as error:
                problems.append(Problem(name, str(error)))
            except ValidationError as error:
                problems += explain(name, section_type, error.errors())
        elif name not in mistyped:
            problems.append(Problem(name, missing(name, "this section is missing")))
    for rule in RULES:
        problems += rule(sections)
    if problems:
        raise ConfigError(message(source, problems))
    return Params.model_validate(sections)


def parse_section(data: Any, kind: type[_Section], source: str) -> _Section:
    """Return plain data as a section of its own, such as a file that is no params file.

    Args:
        data: What ``read_yaml`` returns.
        kind: What it should be.
        source: Name of the file, for messages.

    Raises:
        ConfigError: Some entries are wrong; the message lists all of them.
    """
    if not isinstance(data, dict):
        raise ConfigError(f"{source}: should hold entries, found {kind_of(data)}")
    try:
        return kind.model_validate_json(_as_json(data))
    except TypeError as error:
        raise ConfigError(f"{source}: {error}") from None
    except ValidationError as error:
        problems = [
            Problem(problem.path.removeprefix("."), problem.text)
            for problem in explain("", kind, error.errors())
        ]
        raise ConfigError(message(source, problems)) from None


def _as_json(data: Any) -> str:
    """Return data as JSON; raise ``TypeError`` where it holds what a params file cannot."""
    try:
        text = json.dumps(data)
        text.encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise TypeError(f"holds what no params file can: {error}") from None
    return text


def read_assignments(texts: Sequence[str]) -> dict[str, Any]:
    """Return dotted names and their values from ``["distill.num_steps=8", ...]``.

    Args:
        texts: Each ``name=value``; the value is read as YAML.

    Raises:
        ConfigError: A text has no ``=``, no name or no readable value, or a name comes twice.
    """
    values: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        name = name.strip()
        if not equals or not name:
            raise ConfigError(f"{text!r}: write it as section.name=value")
        if name in values:
            raise ConfigError(f"{name}: stands here twice")
        try:
            values[name] = read_value(value)
        except ValueError:
            raise ConfigError(f"{name}: {value!r} is not a value") from None
    return values


def override(data: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy of a params file's data with some values replaced.

    Args:
        data: What ``read_yaml`` returns.
        values: New values by dotted name.

    Raises:
        ConfigError: A name is not in the data.
    """
    result: dict[str, Any] = json.loads(json.dumps(data))
    for name, value in values.items():
        *parents, last = name.split(".")
        place: Any = result
        for depth, part in enumerate([*parents, last]):
            if not isinstance(place, dict) or part not in place:
                where = ".".join([*parents, last][: depth + 1])
                known = place if isinstance(place, dict) else {}
                raise ConfigError(f"{where}: {unknown_key(part, known)}")
            if depth < len(parents):
                place = place[part]
        place[last] = value
    return result
