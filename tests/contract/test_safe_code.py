"""What the project's own code may not do with what it reads, and where its servers listen.

Read off the syntax trees: a file that is added is held to it.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
from repository import ROOT

FILES = sorted(
    path for folder in ("src", "flows", "benchmarks") for path in (ROOT / folder).rglob("*.py")
)
# Modules that run what they read, or write what only such modules read.
UNSAFE_MODULES = {
    "cloudpickle", "dbm", "dill", "jsonpickle", "joblib", "marshal", "pickle", "shelve",
    "telnetlib", "xml",
}  # fmt: skip
UNSAFE_CALLS = {
    "eval", "exec", "compile", "__import__", "os.system", "os.popen", "tempfile.mktemp",
    "torch.save", "pd.read_pickle", "pandas.read_pickle", "yaml.full_load", "yaml.unsafe_load",
    "extractall", "mktemp", "to_pickle", "subprocess.getoutput", "subprocess.getstatusoutput",
}  # fmt: skip
SAFE_YAML = "src/danceflow/params/yaml12.py"  # its loader extends the safe one


def name_of(node: ast.expr) -> str:
    """The dotted name of what is called, ``a.b``; an empty text where it has none."""
    if isinstance(node, ast.Attribute):
        return f"{name_of(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def wrong_import(node: ast.AST) -> str | None:
    if isinstance(node, ast.Import):
        names = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom) and node.level == 0:
        is_error = [alias.name for alias in node.names] == ["UnpicklingError"]
        names = [] if is_error else [node.module or ""]
    else:
        return None
    found = [name for name in names if name.split(".")[0] in UNSAFE_MODULES]
    return f"imports {found[0]}" if found else None


def wrong_call(node: ast.AST, path: Path) -> str | None:
    if not isinstance(node, ast.Call):
        return None
    name = name_of(node.func)
    given = {word.arg: word.value for word in node.keywords if word.arg is not None}

    def is_true(word: str) -> bool:
        value = given.get(word)
        return value is not None and not (isinstance(value, ast.Constant) and not value.value)

    if name in UNSAFE_CALLS or name.split(".")[-1] in {"extractall", "mktemp", "to_pickle"}:
        return f"calls {name}"
    for word in ("shell", "allow_pickle", "trust_remote_code", "allow_dangerous_deserialization"):
        if is_true(word):
            return f"{word} in {name}"
    if name == "torch.load" and not is_true("weights_only"):
        return "torch.load without weights_only=True"
    if name == "yaml.load" and path != ROOT / SAFE_YAML:
        return "yaml.load"
    if name.split(".")[-1] == "run" and any(
        isinstance(value, ast.Constant) and value.value == "0.0.0.0" for value in given.values()
    ):
        return f"{name} listens everywhere"
    return None


def faults() -> Iterator[str]:
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if said := wrong_import(node) or wrong_call(node, path):
                yield f"{path.relative_to(ROOT)}:{node.lineno}: {said}"  # type: ignore[attr-defined]


def test_no_code_runs_what_it_reads() -> None:
    assert list(faults()) == []


@pytest.mark.parametrize(
    "text",
    [
        "import pickle",
        "from joblib import load",
        "import xml.etree.ElementTree",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "torch.save(a, b)",
        "numpy.load(path, allow_pickle=True)",
        "subprocess.run('x', shell=True)",
        "yaml.load(text, Loader=yaml.Loader)",
        "eval(text)",
        "archive.extractall(folder)",
        "load_dataset('a', trust_remote_code=True)",
        "uvicorn.run(app, host='0.0.0.0')",
    ],
)
def test_the_rule_sees_what_it_should(text: str) -> None:
    nodes = list(ast.walk(ast.parse(text)))
    assert any(wrong_import(node) or wrong_call(node, ROOT / "x.py") for node in nodes)


def test_no_address_of_all_interfaces_stands_in_the_code() -> None:
    everywhere = {"0.0.0.0", "::", "[::]"}
    found = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in FILES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and node.value in everywhere
    ]
    assert found == []
