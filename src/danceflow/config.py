"""Reads a params file into ``Params``: every problem at once, each with its place.

The only module that knows YAML. Values follow YAML 1.2, as DVC reads them: ``1e-3`` is a number
and ``no`` is a word.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, NamedTuple, TypeVar, get_args, get_origin, get_type_hints

import yaml
from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from danceflow.capability import MERGE
from danceflow.errors import ConfigError, unknown_name
from danceflow.schema import (
    BROUGHT,
    COUPLING_NAMES,
    DYNAMICS_NAMES,
    FAMILY_NAMES,
    METHOD_NAMES,
    OBJECTIVE_NAMES,
    QUERY_NAMES,
    REDUCTION_NAMES,
    ROUTING_NAMES,
    SCENE_BUCKETS,
    SCRATCH,
    SOURCE_NAMES,
    BucketParams,
    CacheParams,
    CapabilityParams,
    DataParams,
    DistillParams,
    EvaluateParams,
    FamilyParams,
    GateParams,
    InputParams,
    JudgeParams,
    Params,
    RunParams,
    Section,
    TeacherParams,
    TextEncoderParams,
    TrackingParams,
    TransformerParams,
    WeightsParams,
)

__all__ = [
    "COUPLING_NAMES",
    "DYNAMICS_NAMES",
    "FAMILY_NAMES",
    "METHOD_NAMES",
    "OBJECTIVE_NAMES",
    "QUERY_NAMES",
    "REDUCTION_NAMES",
    "ROUTING_NAMES",
    "SCENE_BUCKETS",
    "SOURCE_NAMES",
    "BucketParams",
    "CacheParams",
    "CapabilityParams",
    "DataParams",
    "DistillParams",
    "EvaluateParams",
    "FamilyParams",
    "GateParams",
    "InputParams",
    "JudgeParams",
    "Params",
    "RunParams",
    "TeacherParams",
    "TextEncoderParams",
    "TrackingParams",
    "TransformerParams",
    "WeightsParams",
    "dump_yaml",
    "load_params",
    "override",
    "parse_params",
    "parse_section",
    "read_assignments",
    "read_yaml",
    "require_trained_here",
    "require_weights",
]


_Section = TypeVar("_Section", bound=Section)


class Problem(NamedTuple):
    """One thing that is wrong in a params file."""

    path: str
    text: str


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
        raise ConfigError(f"{source}: should hold sections, found {_kind(data)}")
    problems = [
        Problem(name, _unknown_key(name, Params.model_fields))
        for name in data
        if name not in Params.model_fields
    ]
    mistyped = {_nearest(p.path, Params.model_fields) for p in problems}
    sections: dict[str, Any] = {}
    for name, section_type in get_type_hints(Params, include_extras=True).items():
        if name not in Params.model_fields:
            continue
        if name in data:
            try:
                sections[name] = TypeAdapter(section_type).validate_json(json.dumps(data[name]))
            except ValidationError as error:
                problems += _explain(name, section_type, error.errors())
        elif name not in mistyped:
            problems.append(Problem(name, "this section is missing"))
    for rule in _RULES:
        problems += rule(sections)
    if problems:
        raise ConfigError(_message(source, problems))
    return Params.model_validate(sections)


def require_trained_here(params: Params, source: str) -> None:
    """Check that all teachers can be trained, before the weights that are there are removed.

    Args:
        params: the parameters.
        source: Name of their file, for messages.

    Raises:
        ConfigError: A teacher was brought along.
    """
    for name, teacher in params.teachers.items():
        if teacher.init == BROUGHT:
            raise ConfigError(
                f"{source}: teachers.{name}: was brought along (danceflow bring-teachers) and "
                "cannot be trained anew"
            )


def require_weights(params: Params, root: Path, source: str) -> None:
    """Check that the weights of further metrics are there, before hours of training.

    Args:
        params: the parameters.
        root: The checkout, where relative paths start.
        source: Name of their file, for messages.

    Raises:
        ConfigError: A path of ``evaluate.weights`` leads nowhere; the message lists all of them.
    """
    problems = [
        Problem(f"evaluate.weights.{name}", f"{root / path}: there is no such file or folder")
        for name, path in params.evaluate.weights
        if path is not None and not (root / path).exists()
    ]
    if problems:
        raise ConfigError(_message(source, problems))


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
        raise ConfigError(f"{source}: should hold entries, found {_kind(data)}")
    try:
        return kind.model_validate_json(json.dumps(data))
    except ValidationError as error:
        problems = [
            Problem(problem.path.removeprefix("."), problem.text)
            for problem in _explain("", kind, error.errors())
        ]
        raise ConfigError(_message(source, problems)) from None


def read_yaml(path: Path) -> Any:
    """Return the plain data of a YAML file (YAML 1.2 values).

    Raises:
        ConfigError: The file cannot be read, is no YAML or repeats a key.
    """
    try:
        # The loader below extends the safe one: it builds plain data only.
        return yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)  # noqa: S506
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None


def dump_yaml(data: Any) -> str:
    """Return plain data as YAML text, keys in their order."""
    return yaml.safe_dump(data, sort_keys=False, allow_unicode=True, width=100)


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
            values[name] = yaml.load(value, Loader=_Loader)  # noqa: S506
        except yaml.YAMLError:
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
                raise ConfigError(f"{where}: {_unknown_key(part, known)}")
            if depth < len(parents):
                place = place[part]
        place[last] = value
    return result


# ---------------------------------------------------------------------------------------------
# Rules that tie sections together. A rule sees the sections that are right in themselves.


def _rule_capabilities(sections: Mapping[str, Any]) -> Iterator[Problem]:
    for name, capability in sections.get("capabilities", {}).items():
        path = f"capabilities.{name}"
        if "teachers" in sections and capability.teacher not in sections["teachers"]:
            text = unknown_name("teacher", capability.teacher, sections["teachers"])
            yield Problem(f"{path}.teacher", text)
        if "data" in sections and capability.bucket not in sections["data"].buckets:
            text = unknown_name("bucket", capability.bucket, sections["data"].buckets)
            yield Problem(f"{path}.bucket", text)


def _rule_weights(sections: Mapping[str, Any]) -> Iterator[Problem]:
    capabilities = sections.get("capabilities", {})
    if capabilities and not any(capability.weight > 0 for capability in capabilities.values()):
        yield Problem("capabilities", "at least one needs a weight above 0")


def _rule_teachers(sections: Mapping[str, Any]) -> Iterator[Problem]:
    teachers: Mapping[str, TeacherParams] = sections.get("teachers", {})
    for name, teacher in teachers.items():
        path = f"teachers.{name}"
        if "data" in sections and teacher.bucket not in sections["data"].buckets:
            text = unknown_name("bucket", teacher.bucket, sections["data"].buckets)
            yield Problem(f"{path}.bucket", text)
        seen = [name]
        while seen[-1] in teachers:
            init = teachers[seen[-1]].init
            if init in seen:
                yield Problem(f"{path}.init", f"starts from itself: {' < '.join([*seen, init])}")
                break
            seen.append(init)
        if name in (words := {MERGE, SCRATCH, BROUGHT}):
            text = f"no teacher can be called {name!r}: {', '.join(sorted(words))} are starts"
            yield Problem(path, text)
        if teacher.init not in (known := {SCRATCH, BROUGHT, *teachers}):
            text = unknown_name("teacher", teacher.init, known)
            yield Problem(f"{path}.init", text)


def _rule_adapters(sections: Mapping[str, Any]) -> Iterator[Problem]:
    """All adapters stand on one network, which is in memory once."""
    teachers: Mapping[str, TeacherParams] = sections.get("teachers", {})
    bases = {name: t.init for name, t in teachers.items() if t.adapter_rank is not None}
    for name, base in bases.items():
        if base in {SCRATCH, BROUGHT} or base in bases:
            text = f"an adapter stands on a teacher with weights of its own, not on {base!r}"
            yield Problem(f"teachers.{name}.init", text)
        elif base != next(iter(bases.values())):
            text = f"all adapters stand on one teacher, here {base!r} and others"
            yield Problem(f"teachers.{name}.init", text)


def _rule_distill(sections: Mapping[str, Any]) -> Iterator[Problem]:
    distill: DistillParams | None = sections.get("distill")
    if distill is None:
        return
    if isinstance(distill.num_queries, int) and distill.num_queries > distill.num_steps:
        text = f"{distill.num_queries} queries do not fit into num_steps = {distill.num_steps}"
        yield Problem("distill.num_queries", text)
    if "teachers" not in sections:
        return
    starts = {MERGE, *sections["teachers"]}
    if distill.init not in starts:
        yield Problem("distill.init", unknown_name("start", distill.init, starts))
    for name in distill.merge_weights or {}:
        if name not in sections["teachers"]:
            text = unknown_name("teacher", name, sections["teachers"])
            yield Problem(f"distill.merge_weights.{name}", text)
    if distill.merge_weights is not None and sum(distill.merge_weights.values()) == 0:
        yield Problem("distill.merge_weights", "at least one weight should be above 0")


def _rule_gate(sections: Mapping[str, Any]) -> Iterator[Problem]:
    if "gate" not in sections or "capabilities" not in sections:
        return
    given, known = sections["gate"].min_retention, sections["capabilities"]
    for name in given:
        if name not in known:
            yield Problem(f"gate.min_retention.{name}", unknown_name("capability", name, known))
    for name in known:
        if name not in given:
            yield Problem(f"gate.min_retention.{name}", "is missing: every capability needs one")


def _rule_sizes(sections: Mapping[str, Any]) -> Iterator[Problem]:
    if "family" not in sections:
        return
    network: TransformerParams = sections["family"].transformer
    if network.sample_size % network.patch_size:
        text = f"{network.patch_size} does not divide sample_size = {network.sample_size}"
        yield Problem("family.transformer.patch_size", text)


def _rule_scenes(sections: Mapping[str, Any]) -> Iterator[Problem]:
    if "data" in sections and sections["data"].source == "scenes":
        for name in sections["data"].buckets:
            if name not in SCENE_BUCKETS:
                text = unknown_name("bucket of the scenes", name, SCENE_BUCKETS)
                yield Problem(f"data.buckets.{name}", text)


def _rule_input(sections: Mapping[str, Any]) -> Iterator[Problem]:
    data: DataParams | None = sections.get("data")
    if data is None:
        return
    if data.input is None:
        if data.source != "scenes":
            yield Problem("data.input", f"is missing: where does the {data.source} lie?")
        return
    if data.source == "scenes":
        yield Problem("data.input", "should be null: scenes are drawn, not read")
        return
    for bucket in data.input.tasks:
        if bucket not in data.buckets:
            text = unknown_name("bucket", bucket, data.buckets)
            yield Problem(f"data.input.tasks.{bucket}", text)
    if "task" not in data.input.columns and len(data.buckets) > 1:
        text = "task: is missing; with several buckets a column must tell them apart"
        yield Problem("data.input.columns", text)
    if "task" in data.input.columns:
        for bucket in data.buckets:
            if not data.input.tasks.get(bucket):
                text = "is missing: which tasks belong to this bucket?"
                yield Problem(f"data.input.tasks.{bucket}", text)


def _rule_judge(sections: Mapping[str, Any]) -> Iterator[Problem]:
    evaluate: EvaluateParams | None = sections.get("evaluate")
    judge = None if evaluate is None else evaluate.judge
    if evaluate is None or judge is None or not judge.is_score:
        return
    if judge.num_samples < evaluate.num_samples:
        text = f"{judge.num_samples} rows are judged, retention needs all {evaluate.num_samples}"
        yield Problem("evaluate.judge.num_samples", text)


_RULES = (
    _rule_capabilities,
    _rule_weights,
    _rule_teachers,
    _rule_adapters,
    _rule_distill,
    _rule_gate,
    _rule_sizes,
    _rule_scenes,
    _rule_input,
    _rule_judge,
)


# ---------------------------------------------------------------------------------------------
# Messages


def _message(source: str, problems: Sequence[Problem]) -> str:
    lines = [f"{problem.path}: {problem.text}" for problem in problems]
    if len(lines) == 1:
        return f"{source}: {lines[0]}"
    return "\n  ".join([f"{source}: {len(lines)} problems", *lines])


def _explain(section: str, annotation: Any, errors: Sequence[ErrorDetails]) -> Iterator[Problem]:
    """Yield pydantic's errors in plain words; a mistyped key is one problem, not two."""
    mistyped = set()
    for error in errors:
        if error["type"] == "extra_forbidden":
            *parent, key = error["loc"]
            siblings = _fields_at(annotation, parent)
            mistyped.add((*parent, _nearest(str(key), siblings)))
            yield Problem(_dotted(section, error["loc"]), _unknown_key(str(key), siblings))
    for error in errors:
        if error["type"] == "missing" and error["loc"] not in mistyped:
            yield Problem(_dotted(section, error["loc"]), "is missing")
        elif error["type"] not in {"extra_forbidden", "missing"}:
            yield Problem(_dotted(section, error["loc"]), _plain(error))


def _plain(error: ErrorDetails) -> str:
    context = error.get("ctx", {})
    if error["type"] == "value_error":
        return str(context["error"])
    if error["type"] == "literal_error":
        known = re.findall(r"'([^']*)'", context["expected"])
        return unknown_name("value", str(error["input"]), known)
    text = re.sub(r"^\w+ should", "should", error["msg"]).replace("an object", "a mapping")
    return f"{text}, found {_kind(error['input'])}"


def _kind(value: Any) -> str:
    if isinstance(value, dict | list):
        return "a mapping" if isinstance(value, dict) else "a list"
    return "nothing" if value is None else json.dumps(value)


def _dotted(section: str, loc: Sequence[int | str]) -> str:
    return ".".join([section, *(str(part) for part in loc if part != "[key]")])


def _nearest(name: str, known: Mapping[str, Any]) -> str | None:
    close = get_close_matches(name, known, n=1, cutoff=0.5)
    return close[0] if close else None


def _unknown_key(name: str, known: Mapping[str, Any]) -> str:
    return unknown_name("parameter", name, known)


def _fields_at(annotation: Any, loc: Sequence[int | str]) -> Mapping[str, Any]:
    """Return the keys that a model knows, some places below an annotation."""
    for part in loc:
        fields = _fields(annotation)
        if get_origin(annotation) is Annotated:
            annotation = get_args(annotation)[0]
        annotation = fields[str(part)].annotation if fields else get_args(annotation)[-1]
    return _fields(annotation)


def _fields(annotation: Any) -> Mapping[str, Any]:
    is_model = isinstance(annotation, type) and issubclass(annotation, BaseModel)
    return annotation.model_fields if is_model else {}


# ---------------------------------------------------------------------------------------------
# YAML 1.2


class _Loader(yaml.SafeLoader):
    """Builds plain data with the value rules of YAML 1.2's core schema; a repeated key raises."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012

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
    return int(loader.construct_scalar(node))


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
