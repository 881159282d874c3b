"""What a parameter means, which values it takes and who uses it."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from danceflow.errors import UsageError, unknown_name
from danceflow.params.sections import Params

ANY_NAME = "<name>"
"""Stands for the names that a file gives itself, such as those of capabilities."""

_BOUNDS = {
    "minimum": "at least {}",
    "exclusiveMinimum": "above {}",
    "maximum": "at most {}",
    "exclusiveMaximum": "below {}",
    "pattern": "of the form {}",
}
_TYPES = {"integer": "a whole number", "number": "a number", "string": "text", "null": "null"}


@dataclass(frozen=True)
class Meaning:
    """A parameter or a section.

    Attributes:
        name: dotted, with ``<name>`` where a file gives names itself.
        text: what it means.
        values: what it takes, in words; of a section, what lies in it.
        parts: of a section, what lies in it by name.
    """

    name: str
    text: str
    values: str
    parts: Mapping[str, str]


def meaning_of(name: str) -> Meaning:
    """Return what a parameter or a section means.

    Args:
        name: such as ``distill.query``, ``gate`` or ``capabilities.t2i.weight``.

    Raises:
        UsageError: there is none of that name; the message names the nearest.
    """
    schema = Params.model_json_schema()
    node: Mapping[str, Any] = schema
    done: list[str] = []
    text = ""
    for part in name.split("."):
        fields = node.get("properties", {})
        if part in fields:
            found = fields[part]
            done.append(part)
        elif not fields and (named := _named(node)) is not None:
            found = named
            done.append(ANY_NAME)
        else:
            known = [".".join([*done, field]) for field in fields]
            raise UsageError(unknown_name("parameter", name, known))
        text = found.get("description", text)
        node = _resolved(found, schema["$defs"])
        text = text or node.get("description", "")
    return Meaning(".".join(done), _line(text), _values(node), _parts(node, schema["$defs"]))


def parameter_names() -> Iterator[str]:
    """Return the dotted name of every parameter, section by section."""
    schema = Params.model_json_schema()

    def below(node: Mapping[str, Any], name: str) -> Iterator[str]:
        inner = _resolved(node, schema["$defs"])
        fields = inner.get("properties")
        if fields:
            for field, found in fields.items():
                yield from below(found, f"{name}.{field}" if name else field)
        elif (named := _named(inner)) is not None and "$ref" in named:
            yield from below(named, f"{name}.{ANY_NAME}")
        else:
            yield name

    return below(schema, "")


def is_held(name: str, held: Sequence[str]) -> bool:
    """Return whether one of some dotted names is the parameter, lies above it or below it.

    Args:
        name: of the parameter; ``<name>`` fits every name.
        held: such as the parameters in a stage's key; ``{item}`` fits every name.
    """
    wanted = name.split(".")
    return any(
        all(
            a == b or ANY_NAME in (a, b) or "{item}" in (a, b)
            for a, b in zip(wanted, other.split("."), strict=False)
        )
        for other in held
    )


def _named(node: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Return what lies under the free names of a mapping, or None if it is none."""
    for one in node.get("anyOf", ()):  # such as a number, or one for every capability
        if (named := _named(one)) is not None:
            return named
    found = next(iter(node.get("patternProperties", {}).values()), None)
    further = node.get("additionalProperties")
    return found or (further if isinstance(further, dict) else None)


def _resolved(node: Mapping[str, Any], definitions: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a schema with a section's reference followed, also beside null."""
    for option in (node, *node.get("anyOf", ())):
        if "$ref" in option:
            found = definitions[option["$ref"].rpartition("/")[2]]
            return {**found, "nullable": option is not node}
    return node


def _parts(node: Mapping[str, Any], definitions: Mapping[str, Any]) -> dict[str, str]:
    """Return what lies in a section, or in each section of a mapping of them."""
    named = _named(node)
    prefix = "" if named is None else f"{ANY_NAME}."
    section = node if named is None else _resolved(named, definitions)
    return {
        f"{prefix}{field}": _line(inner.get("description", ""))
        for field, inner in section.get("properties", {}).items()
    }


def _line(text: str) -> str:
    return " ".join(text.split())


def _values(node: Mapping[str, Any]) -> str:
    if node.get("properties"):
        return "a section, or null" if node.get("nullable") else "a section"
    if "anyOf" in node:
        return ", or ".join(_values(option) for option in node["anyOf"])
    if "enum" in node:
        return " | ".join(map(str, node["enum"]))
    if "const" in node:
        return str(node["const"])
    kind = node.get("type")
    if kind == "boolean":
        return "true | false"
    if kind == "array":
        return f"a list, each {_values(node.get('items', {}))}"
    if kind == "object":
        inner = _named(node) or {}
        return "names, each " + ("with its section" if "$ref" in inner else _values(inner))
    bounds = [text.format(f"{node[key]}") for key, text in _BOUNDS.items() if key in node]
    return " ".join([_TYPES.get(str(kind), "any value"), *bounds])
