"""Write the pages that are made from the code: parameters, commands, modules, decisions.

``make docs`` runs it before the site is built; git ignores what it writes.
"""

import json
from pathlib import Path
from typing import Any

import typer.main

from danceflow import cli
from danceflow.params.meaning import meaning_of, parameter_names
from danceflow.params.sections import Params
from danceflow.params.yaml12 import read_yaml

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src" / "danceflow"


def page(name: str, *lines: str) -> None:
    """Write a page, unless it is as it should be: a server that watches would build for ever."""
    path = ROOT / "docs" / name
    text = "\n".join(lines) + "\n"
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


def cell(text: object) -> str:
    return str(text).replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")


def value_of(data: Any, name: str) -> str:
    for part in name.split("."):
        if not isinstance(data, dict):
            return ""
        data = data.get(part, next(iter(data.values())) if part == "<name>" and data else None)
    return f"`{json.dumps(data)}`"


def parameters() -> None:
    data = read_yaml(ROOT / "params.yaml")
    lines = [
        "# Parameters",
        "",
        "Every parameter of a params file. The default is what `params.yaml` holds;",
        "under `<name>` that of the first entry. `danceflow explain NAME` says which stages a",
        "parameter decides. All are there since version 0.1.0.",
    ]
    for section in Params.model_fields:
        lines += ["", f"## {section}", "", meaning_of(section).text, ""]
        lines += ["| parameter | takes | default | meaning |", "|---|---|---|---|"]
        for name in parameter_names():
            if name.split(".")[0] == section:
                found = meaning_of(name)
                row = (
                    f"`{name}`",
                    cell(found.values),
                    cell(value_of(data, name)),
                    cell(found.text),
                )
                lines.append(f"| {' | '.join(row)} |")
    page("reference/parameters.md", *lines)


def commands() -> None:
    lines = ["# Commands", "", "`danceflow COMMAND --help` says the same in a terminal."]
    group: Any = typer.main.get_command(cli.app)
    for name, command in group.commands.items():
        usage = " ".join(
            f"[{p.name}]" if not p.required else p.name
            for p in command.params
            if p.param_type_name == "argument"
        )
        lines += ["", f"## danceflow {name} {usage}".rstrip(), "", (command.help or "").strip(), ""]
        if command.params:
            lines += ["| option | meaning | default |", "|---|---|---|"]
        for parameter in command.params:
            names = ", ".join(f"`{item}`" for item in parameter.opts)
            default = "" if parameter.default in (None, False, ()) else f"`{parameter.default}`"
            lines.append(f"| {names} | {cell(getattr(parameter, 'help', '') or '')} | {default} |")
    page("reference/commands.md", *lines)


def modules() -> list[str]:
    names = []
    for path in sorted(PACKAGE.iterdir()):
        is_package = (path / "__init__.py").is_file()
        if path.stem in ("__init__", "__main__") or not (is_package or path.suffix == ".py"):
            continue
        files = sorted(path.rglob("*.py")) if is_package else [path]
        lines = [f"# danceflow.{path.stem}", ""]
        for file in files:
            parts = file.relative_to(ROOT / "src").with_suffix("").parts
            module = ".".join(part for part in parts if part != "__init__")
            lines += [f"::: {module}", ""]
        page(f"reference/modules/{path.stem}.md", *lines)
        names.append(path.stem)
    return names


def decisions() -> None:
    lines = ["# Decisions", "", "Why things are as they are.", ""]
    for path in sorted((ROOT / "docs" / "decisions").glob("0*.md")):
        title = path.read_text(encoding="utf-8").splitlines()[0].removeprefix("# ")
        lines.append(f"- [{title}]({path.name})")
    page("decisions/index.md", *lines)


parameters()
commands()
decisions()
page(
    "reference/index.md",
    "# Reference",
    "",
    "- [Parameters](parameters.md): every knob of a params file",
    "- [Commands](commands.md): the command line",
    "",
    "What the code says of itself, room by room:",
    "",
    *(f"- [danceflow.{name}](modules/{name}.md)" for name in modules()),
)
