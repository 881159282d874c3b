"""Every command in README and docs is one that the programs know, and is executed somewhere.

Blocks are whole commands: the programs' own parsers take them. In a sentence a command may lack
arguments: its subcommands and options are looked up.
"""

import argparse
import ast
import contextlib
import re
import subprocess
import tomllib
from itertools import pairwise
from pathlib import Path
from typing import Any

import doc_commands
import pytest
import started
import typer.main
from doc_commands import (
    EXECUTED,
    NEEDS,
    PAGES,
    Command,
    blocks,
    executed_by,
    mentions,
    overlooked,
)
from one_process import one_process
from repository import ROOT

from danceflow import cli
from danceflow.params.meaning import parameter_names
from danceflow.params.read import read_assignments

BLOCKS = [command for page in PAGES for command in blocks(page)]
USERS = ("deploy/.env", "sweeps/steps.yaml")
"""Files that a page tells how to write."""

# What was typed once need not be there any more: the log and decisions are about then.
THEN = ("log.md", "decisions")
MENTIONS = [c for page in PAGES if not {*page.parts} & {*THEN} for c in mentions(page)]
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
PLACEHOLDER = re.compile(r"<[^>]+>|\.\.\.|[A-Z]{3,}$")
"""What stands for a user's own."""

OWN_FOLDERS = ("benchmarks/", "deploy/", "recipes/", "sweeps/", "tests/")


@pytest.mark.parametrize("command", BLOCKS, ids=str)
def test_a_whole_command_is_what_its_program_takes(command: Command) -> None:
    program, *words = command.words
    if program == "danceflow":
        root = typer.main.get_command(cli.app)
        parse(root, words)
        assert_parameters_exist(words)
    elif program == "mlflow":
        import mlflow.cli

        parse(mlflow.cli.cli, words)
    elif program == "dvc":
        from dvc.cli import parse_args

        assert parse_args(words).func
    elif program == "prefect":
        from prefect.cli._app import _app

        _app.parse_args(words, exit_on_error=False, print_error=False)
    elif program == "docker" and "danceflow" in words:  # what the container is told to run
        parse(typer.main.get_command(cli.app), words[words.index("danceflow") + 1 :])
    elif program == "python" and words[0].startswith("benchmarks/"):
        parser_of(ROOT / words[0]).parse_args(words[1:])
    elif program == "bash":
        script, part, *rest = words
        text = (ROOT / script).read_text(encoding="utf-8")
        body = re.search(rf"(?ms)^{part}\(\) {{\n(.*?)^}}$", text)
        assert body, f"{script} has no {part}"
        for file in re.findall(r'(?m)^\s+python3 (\S+\.py) .*"\$@"$', body[1]):
            parser_of(ROOT / file).parse_args(rest)
    else:
        assert_known(command)
    assert_files_exist(words)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_no_line_that_is_typed_is_overlooked(page: Path) -> None:
    """Every line of a shell's block, and whatever begins with a program of this machine."""
    assert list(overlooked(page)) == []


def test_a_line_of_an_unknown_program_is_told(tmp_path: Path) -> None:
    written = tmp_path / "page.md"
    written.write_text(
        "```bash\nrsync a b  # c\n```\n\n```\nenv -i sh\nmake run\n no command\n```\n"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(doc_commands, "ROOT", tmp_path)
        assert [line.split(": ")[1] for line in overlooked(written)] == [
            "rsync a b  # c",
            "env -i sh",
        ]


@pytest.mark.parametrize("command", MENTIONS, ids=str)
def test_what_a_sentence_names_is_there(command: Command) -> None:
    if command.words[0] == "danceflow":
        assert_options_exist(typer.main.get_command(cli.app), command.words[1:])
        assert_parameters_exist(command.words)
    elif command.words[0] in ("make", "pip", "python"):
        assert_known(command)
    assert_files_exist(command.words)


@pytest.mark.parametrize("command", BLOCKS, ids=str)
def test_a_command_is_executed_by_a_test_or_says_what_it_needs(command: Command) -> None:
    if command.needs:
        assert set(command.needs.split(", ")) <= NEEDS
        return
    test = executed_by(command)
    assert test, "name the test in EXECUTED, or mark the block: <!-- needs: ... -->"
    file, _, name = test.partition("::")
    code = (ROOT / file).read_text(encoding="utf-8")
    assert f"def {name}(" in code or not name
    for word in command.tested_as.split():
        assert "=" not in word or word in code, f"{test} does not use {word}"


def test_no_rule_is_about_nothing() -> None:
    texts = [command.text for command in BLOCKS if not command.needs]
    assert [rule for rule in EXECUTED if not any(text.startswith(rule) for text in texts)] == []


def test_a_command_that_was_not_started_is_told(tmp_path: Path) -> None:
    """Another subcommand or a lacking option is another command; other values are not."""
    program = tmp_path / "danceflow"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    subprocess.run([program, "team", "of-this-test", "--one=1", "--two", "2"], check=True)
    for said, found in (
        ("team of-this-test --two 3", True),
        ("team of-this-test", True),
        ("team of-this-test --three", False),
        ("team of-another-test", False),
    ):
        assert started.is_started(["danceflow", *said.split()]) is found, said
    subprocess.run(one_process([["of-this-test", "--help"]]), check=False, capture_output=True)
    assert started.is_started(["danceflow", "of-this-test", "--help"])


def parse(command: Any, words: list[str]) -> None:
    """Let the parsers of a command and its subcommands take words; nothing is run.

    Typer brings a click of its own: commands are told apart by what they have.
    """
    rest = [PLACEHOLDER.sub("1", word) for word in words]
    while hasattr(command, "commands"):
        assert rest[0] in command.list_commands(None), rest[0]
        command, rest = command.get_command(None, rest[0]), rest[1:]
    command.make_context("x", rest)


def assert_options_exist(group: Any, words: tuple[str, ...]) -> None:
    """Look up the subcommands and options that are named; what is behind them may lack."""
    for word in words:
        if hasattr(group, "commands"):
            if not PLACEHOLDER.search(word) and not word.startswith("-"):
                assert word in group.commands, word
                group = group.commands[word]
        elif word.startswith("-") and not PLACEHOLDER.search(word):
            options = {name for param in group.params for name in param.opts}
            assert word in options | {"--help"}, word


def assert_parameters_exist(words: tuple[str, ...] | list[str]) -> None:
    """Look up the parameters that are changed."""
    for before, word in pairwise(words):
        if before in ("-S", "--set") and not PLACEHOLDER.search(word):
            (name,) = read_assignments([word])
            assert name in set(parameter_names()), name


def assert_files_exist(words: tuple[str, ...] | list[str]) -> None:
    """Look up the project's own files."""
    for word in words:
        if word.startswith(OWN_FOLDERS) and not PLACEHOLDER.search(word):
            assert (ROOT / word).exists() or word in USERS, word


def assert_known(command: Command) -> None:
    """Look up targets of make, extras of pip and scripts of Python."""
    program, *words = command.words
    if program == "make":
        assert re.search(rf"^{words[0]}:", MAKEFILE, re.MULTILINE), words[0]
    elif program == "pip":
        project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        for extra in re.findall(r"danceflow\[(\w+)\]", command.text):
            assert extra in project["optional-dependencies"]
    elif program == "python" and words[0] != "-m":
        parser = parser_of(ROOT / words[0])
        for action in parser._actions:
            action.required = False
        parser.parse_args([PLACEHOLDER.sub("1", word) for word in words[1:]])


class ParsingError(Exception):
    """Ends a script where it reads its arguments."""


def parser_of(script: Path) -> argparse.ArgumentParser:
    """The parser that a script builds: the script is run up to where it reads its arguments."""
    built = []

    def parsed(parser: argparse.ArgumentParser, *_: object) -> None:
        built.append(parser)
        raise ParsingError

    with pytest.MonkeyPatch.context() as patched, contextlib.suppress(ParsingError):
        patched.setattr(argparse.ArgumentParser, "parse_args", parsed)
        patched.syspath_prepend(str(script.parent))
        names: dict[str, Any] = {"__name__": script.stem, "__file__": str(script)}
        code = ast.parse(script.read_text(encoding="utf-8"))
        names["__doc__"] = ast.get_docstring(code)
        for node in code.body:
            with contextlib.suppress(ModuleNotFoundError, NameError):  # an extra's, and who asks it
                exec(ast.unparse(node), names)
        names["main"]()
    (parser,) = built
    return parser
