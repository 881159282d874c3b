"""Holds together what says the same thing twice: dvc.yaml, stages, command line and flow.

Also what DVC cannot know: a stage's key must cover the code that its imports reach and the
parameters that it reads, or a stale result would pass for a fresh one. And it must cover no other
code, or a style sheet would make a training stale.
"""

import ast
import json
import re
import shlex
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from danceflow.errors import ConfigError, unknown_name
from danceflow.ops.code import file_of, holds_code, reached_files
from danceflow.params.read import load_params
from danceflow.params.sections import Params
from danceflow.params.yaml12 import read_yaml
from danceflow.stages import STAGES, Out, Stage

# Sections that decide where something is recorded and who is told of it, never what.
_OUTSIDE_PARAMS = frozenset({"notify", "tracking"})
_STAGE_KEYS = frozenset(
    {"cmd", "deps", "desc", "frozen", "matrix", "meta", "metrics", "outs", "params"}
)
_CODE = "src/danceflow/"


def find_problems(
    root: Path, commands: Mapping[str, Any], stages: Mapping[str, Stage] = STAGES
) -> list[str]:
    """Return one sentence for everything that disagrees in a checkout.

    Args:
        root: The checkout.
        commands: The command line's commands by name, as click has them.
        stages: The stage table.

    Raises:
        ConfigError: ``dvc.yaml`` cannot be read.
    """
    graph = read_yaml(root / "dvc.yaml")
    if not isinstance(graph, dict) or not isinstance(graph.get("stages"), dict):
        raise ConfigError(f"{root / 'dvc.yaml'}: holds no stages")
    return [
        *_graph_problems(graph["stages"], stages),
        *_declaration_problems(graph, stages),
        *_command_problems(graph["stages"], commands),
        *_code_problems(root, graph["stages"], stages),
        *_parameter_problems(root, stages),
        *_flow_problems(root, stages),
    ]


def _graph_problems(found: Mapping[str, Any], stages: Mapping[str, Stage]) -> Iterator[str]:
    for name in found.keys() - stages.keys():
        yield f"dvc.yaml: stage {name!r} is not in danceflow.stages"
    for name in stages.keys() - found.keys():
        yield f"dvc.yaml: stage {name!r} of danceflow.stages is missing"
    for name in found.keys() & stages.keys():
        stage, place = stages[name], f"dvc.yaml: stage {name!r}"
        entry = _with_item(found[name], stage)
        for key in entry.keys() - _STAGE_KEYS:
            yield f"{place}: {key!r} is not known to danceflow.stages"
        matrix = {stage.axis: f"${{{stage.matrix}}}"} if stage.matrix else None
        for key, wanted in (
            ("cmd", stage.command),
            ("frozen", stage.frozen or None),
            ("matrix", matrix),
        ):
            if entry.get(key) != wanted:
                yield f"{place}: {key} is {entry.get(key)!r}, danceflow.stages says {wanted!r}"
        data = [dep for dep in entry.get("deps", ()) if not dep.startswith(_CODE)]
        yield from _differences(place, "deps", data, stage.deps)
        yield from _differences(place, "params", entry.get("params", ()), stage.params)
        for key, is_metric in (("outs", False), ("metrics", True)):
            outs = [_out_text(out) for out in entry.get(key, ())]
            wanted_outs = [_out_text(out) for out in stage.outs if out.is_metric == is_metric]
            yield from _differences(place, key, outs, wanted_outs)


def _declaration_problems(graph: Mapping[str, Any], stages: Mapping[str, Stage]) -> Iterator[str]:
    known = {out.path for stage in stages.values() for out in stage.outs}
    for artifact in graph.get("artifacts", {}).values():
        if artifact["path"] not in known:
            yield f"dvc.yaml: artifacts: no stage writes {artifact['path']}"


def _command_problems(found: Mapping[str, Any], commands: Mapping[str, Any]) -> Iterator[str]:
    """Yield the commands that ``danceflow`` would not take."""
    for name, entry in found.items():
        words = shlex.split(re.sub(r"\$\{[^}]*\}", "item", str(entry.get("cmd", ""))))
        if words[:1] != ["danceflow"] or len(words) < 2 or words[1] not in commands:
            yield f"dvc.yaml: stage {name!r}: {' '.join(words)!r} is no danceflow command"
            continue
        try:
            commands[words[1]].make_context(words[1], words[2:])
        except Exception as error:  # typer's own click has no public name for its usage error
            yield f"dvc.yaml: stage {name!r}: the command line does not take {words}: {error}"


def _code_problems(
    root: Path, found: Mapping[str, Any], stages: Mapping[str, Stage]
) -> Iterator[str]:
    """Yield where a stage's deps and the code that it reaches differ, in either direction."""
    source = root / "src"
    for stage in stages.values():
        module, _, function = stage.function.partition(":")
        file = file_of(source, module)
        place = f"danceflow.stages: stage {stage.name!r}"
        if file is None or function not in _functions(file):
            yield f"{place}: there is no {stage.function}"
            continue
        entry = found.get(stage.name, {})
        deps = [dep for dep in entry.get("deps", ()) if dep.startswith(_CODE)]
        graph = f"dvc.yaml: stage {stage.name!r}: deps"
        reached = {f"src/{name}" for name in reached_files(source, *stage.modules)}
        covered = {dep: _code_below(root, dep) for dep in deps}
        for path in sorted(reached.difference(*covered.values())):
            yield f"{graph}: its imports reach {path}, which is not among them"
        for dep, files in covered.items():
            if not (root / dep).exists():
                yield f"{graph}: there is no {dep}"
            for path in sorted(files - reached):
                inside = "" if path == dep else f" of {dep}"
                yield f"{graph}: its imports do not reach {path}{inside}"
        declared = {name.partition(".")[0] for name in stage.params} | _OUTSIDE_PARAMS
        for section in sorted(_sections_read(file) - declared):
            yield f"{place}: {module} reads params.{section}, which is not in its params"


def _parameter_problems(root: Path, stages: Mapping[str, Stage]) -> Iterator[str]:
    for path in (root / "params.yaml", *sorted((root / "recipes").glob("*.yaml"))):
        try:
            params = load_params(path)
        except ConfigError as error:
            yield str(error)
            continue
        for stage in stages.values():
            items = getattr(params, stage.matrix) if stage.matrix else ("",)
            for name in {text.format(item=item) for text in stage.params for item in items}:
                try:
                    params.select((name,))
                except KeyError:
                    yield f"danceflow.stages: stage {stage.name!r}: {path.name} has no {name!r}"


def _flow_problems(root: Path, stages: Mapping[str, Stage]) -> Iterator[str]:
    """Yield what the flow would run and the table does not know, and the other way round."""
    from flows.dvc_graph import DvcError, stage_graph

    for file in sorted((root / "flows").glob("*.py")):
        for name in sorted(_stages_named(file) - stages.keys()):
            yield f"flows/{file.name}: {unknown_name('stage', name, stages)}"
    try:
        params = load_params(root / "params.yaml")
        found = {node.name for node in stage_graph(root)}
    except (ConfigError, DvcError) as error:
        yield f"the flow cannot start: {error}"
        return
    wanted = {
        f"{stage.name}@{item}" if stage.matrix else stage.name
        for stage in stages.values()
        for item in (getattr(params, stage.matrix) if stage.matrix else ("",))
    }
    for name in sorted(found - wanted):
        yield f"the flow would run {name}, which is not in danceflow.stages"
    for name in sorted(wanted - found):
        yield f"the flow would not run {name} of danceflow.stages"


# ---------------------------------------------------------------------------------------------
# dvc.yaml


def _with_item(entry: Any, stage: Stage) -> Any:
    """Return a stage of dvc.yaml with ``{item}`` for DVC's way to write it."""
    if isinstance(entry, str):
        return entry.replace(f"${{item.{stage.axis}}}", "{item}")
    if isinstance(entry, list):
        return [_with_item(value, stage) for value in entry]
    if isinstance(entry, dict):
        return {_with_item(key, stage): _with_item(value, stage) for key, value in entry.items()}
    return entry


def _out_text(out: str | Mapping[str, Any] | Out) -> str:
    """Return an out, of dvc.yaml or of the table, in one spelling."""
    if isinstance(out, str):
        return out
    if isinstance(out, Out):
        flags = {} if out.cached else {"cache": False}
        return _out_text({out.path: flags | ({"persist": True} if out.persists else {})})
    ((path, flags),) = out.items()
    return " ".join([path, *(f"({key}: {json.dumps(value)})" for key, value in flags.items())])


def _differences(
    place: str, key: str, found: Collection[str], wanted: Collection[str]
) -> Iterator[str]:
    for name in sorted(set(found) - set(wanted)):
        yield f"{place}: {key}: {name} is not in danceflow.stages"
    for name in sorted(set(wanted) - set(found)):
        yield f"{place}: {key}: {name} of danceflow.stages is missing"


# ---------------------------------------------------------------------------------------------
# Code


def _code_below(root: Path, dep: str) -> set[str]:
    """Return the files of a dep whose content counts: no compiled ones, and none without code."""
    place = root / dep
    files = place.rglob("*") if place.is_dir() else [place] if place.is_file() else []
    return {
        file.relative_to(root).as_posix()
        for file in files
        if file.is_file()
        and "__pycache__" not in file.parts
        and (file.suffix != ".py" or holds_code(file))
    }


def _stages_named(file: Path) -> set[str]:
    """Return the texts that a flow hands to the modules that know DVC: they are stage names."""
    return {
        argument.value
        for node in ast.walk(_parse(file))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and ast.unparse(node.func.value) in {"dvc_graph", "dvc_stage"}
        for argument in node.args
        if isinstance(argument, ast.Constant) and isinstance(argument.value, str)
    }


def _functions(file: Path) -> set[str]:
    return {node.name for node in _parse(file).body if isinstance(node, ast.FunctionDef)}


def _parse(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"), str(file))


def _sections_read(file: Path) -> set[str]:
    """Return the sections that a file takes from a variable ``params``."""
    return {
        node.attr
        for node in ast.walk(_parse(file))
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id == "params"
        and node.attr in Params.model_fields
    }
