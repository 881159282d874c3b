"""Which source files decide what a module gives: those that its imports reach, and their digest.

DVC's keys and the names of work folders go by the same files: ``danceflow check`` holds the deps of
every stage equal to what is reached here, and ``danceflow.ops.keys`` takes the digest. Files are
compared by content and by their place in the package, so that no machine, checkout or compiled
file counts.
"""

import ast
import functools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from danceflow.errors import StageError
from danceflow.ops.files import fingerprint, sha256

PACKAGE = "danceflow"
SOURCE = Path(__file__).resolve().parents[2]
"""The folder that holds the package that is running."""

EVERY_STAGE = (f"{PACKAGE}.ops.determinism",)
"""What a process goes through before any stage's own function, and what decides its numbers."""

# Modules without a part in any result. What the frame passes on, the parameters, is in every key
# by its value; where a run is recorded is no part of it; and a key that is made of other things has
# another name by itself.
_OUTSIDE = frozenset(
    f"{PACKAGE}.{name}"
    for name in (
        "check",
        "cli",
        "errors",
        "ops.clean",
        "ops.code",
        "ops.keys",
        "ops.processes",
        "ops.tracking",
        "params",
        "paths",
        "stages",
    )
)
_MODULE_NAME = re.compile(rf"({PACKAGE}(?:\.\w+)+)(?::\w+)?")
_BEGINS_NAME = re.compile(rf"({PACKAGE}(?:\.\w+)+)\.")
_ANY = "?"
"""Stands for a module's name that is known when the code runs, and not before."""
_CODE_ENDINGS = frozenset({".py", ".pyc", ".pyi", ".so"})
_FILE_NAME = re.compile(r"\w[\w-]*(?:\.\w+)*")


def code_digest(*modules: str) -> str:
    """Return 16 hexadecimal digits that stand for all code of the running package behind modules.

    Args:
        modules: Dotted names; what every stage goes through counts, too.

    Raises:
        StageError: There is no such module.
    """
    return _digest(SOURCE, modules)


def digest_of(source: Path, *modules: str) -> str:
    """Return what ``code_digest`` would, for a package that need not be the running one.

    Args:
        source: The folder that holds the package.
        modules: Dotted names.

    Raises:
        StageError: There is no such module.
    """
    for module in modules:
        if file_of(source, module) is None:
            raise StageError(f"{source}: there is no module {module}")
    files = reached_files(source, *modules, *EVERY_STAGE)
    return fingerprint({file: sha256(source / file) for file in files})


def reached_files(source: Path, *modules: str) -> tuple[str, ...]:
    """Return the files below ``source`` whose content decides what some modules give, sorted.

    Besides modules these are the files that their code names, such as a folder of templates.
    Modules that hold no code, as a package's with a docstring only, are left out.

    Args:
        source: The folder that holds the package.
        modules: Where to begin.
    """
    found: set[Path] = set()
    for module in reached_modules(source, *modules):
        file = file_of(source, module)
        if file is not None and holds_code(file):
            found |= {file, *_files_named(file)}
    return tuple(sorted(file.relative_to(source).as_posix() for file in found))


def reached_modules(source: Path, *modules: str) -> frozenset[str]:
    """Return the project's modules that some modules import, directly or not, themselves included.

    Imports inside functions count, imports for type checking only do not; a text that spells a
    module, such as ``"danceflow.digits.score:DigitReader"``, counts as an import, and one that
    leaves the module open, such as ``f"danceflow.worlds.{name}"``, as an import of all that lie in
    the package. A package whose ``__init__`` does no more than import names hands them on: who
    takes a name from it reaches the module that the name comes from, and not the others.

    Args:
        source: The folder that holds the package.
        modules: Where to begin.
    """
    reached: set[str] = set()
    waiting = list(modules)
    passed: set[str] = set()  # packages that hand on names: their files count, not their imports
    while waiting:
        name = waiting.pop()
        file = file_of(source, name)
        if file is None or name in reached or _is_outside(name):
            continue
        reached.add(name)
        for module, attribute in _facts(file, name).imports:
            if attribute == _ANY:
                waiting += _modules_in(source, module)
                continue
            found, through = _resolve(source, module, attribute)
            waiting.append(found)
            passed |= through
        above = name.rpartition(".")[0]
        if above and _hands_on(source, above):
            passed |= {above, *_above(above)}
        elif above:
            waiting.append(above)
    return frozenset(reached | {name for name in passed if not _is_outside(name)})


def file_of(source: Path, module: str) -> Path | None:
    """Return the file of one of the project's modules, None for a name that is no module."""
    if module.partition(".")[0] != PACKAGE:
        return None
    place = source.joinpath(*module.split("."))
    for file in (place / "__init__.py", place.with_suffix(".py")):
        if file.is_file():
            return file
    return None


def holds_code(file: Path) -> bool:
    """Return whether a file has more than a docstring."""
    return _facts(file, "").holds_code


@functools.cache
def _digest(source: Path, modules: tuple[str, ...]) -> str:
    """Return a digest that is taken once: the code of a process does not change while it runs."""
    return digest_of(source, *modules)


def _is_outside(name: str) -> bool:
    return name == PACKAGE or bool(_OUTSIDE & {name, *_above(name)})


def _above(name: str) -> tuple[str, ...]:
    """Return the packages that a module lies in, without the outermost one."""
    parts = name.split(".")
    return tuple(".".join(parts[:count]) for count in range(2, len(parts)))


def _modules_in(source: Path, package: str) -> list[str]:
    """Return the modules that lie in a package."""
    return [f"{package}.{p.stem}" for p in source.joinpath(*package.split(".")).glob("[!_]*.py")]


def _resolve(source: Path, module: str, attribute: str | None) -> tuple[str, frozenset[str]]:
    """Return the module that an import needs, and the packages that only handed the name on."""
    if attribute is None:
        return module, frozenset()
    if file_of(source, inner := f"{module}.{attribute}") is not None:
        return inner, frozenset()
    file = file_of(source, module)
    if file is None or not _hands_on(source, module):
        return module, frozenset()
    for found, name, bound in _facts(file, module).bindings:
        if bound == attribute:
            origin, through = _resolve(source, found, name)
            return origin, through | {module}
    return module, frozenset()


def _hands_on(source: Path, module: str) -> bool:
    """Return whether a module is a package's, and does nothing but import names."""
    file = file_of(source, module)
    return file is not None and file.name == "__init__.py" and _facts(file, module).hands_on


def _files_named(file: Path) -> Iterator[Path]:
    """Yield the files that are no code and lie beside a module that spells their name."""
    for name in _facts(file, "").names:
        place = file.parent / name
        if place.suffix in _CODE_ENDINGS:
            continue
        if place.is_file():
            yield place
        elif place.is_dir() and not (place / "__init__.py").exists():
            found = (path for path in place.rglob("*") if path.is_file())
            yield from (path for path in found if path.suffix not in _CODE_ENDINGS)


@dataclass(frozen=True)
class _Facts:
    """What the text of a module says.

    Attributes:
        imports: everything that it may import: a module, and what is taken from it.
        bindings: (module, name there, name here) of what it imports at its top.
        names: texts in it that may be the names of files.
        holds_code: whether it has more than a docstring.
        hands_on: whether it does nothing but import names.
    """

    imports: tuple[tuple[str, str | None], ...]
    bindings: tuple[tuple[str, str, str], ...]
    names: frozenset[str]
    holds_code: bool
    hands_on: bool


def _facts(file: Path, module: str) -> _Facts:
    package = module if file.name == "__init__.py" else module.rpartition(".")[0]
    return _facts_of(file.read_text(encoding="utf-8"), package, str(file))


@functools.lru_cache(maxsize=4096)
def _facts_of(text: str, package: str, name: str) -> _Facts:
    tree = ast.parse(text, name)
    code = [node for node in tree.body if not _is_text(node)]
    return _Facts(
        imports=tuple(_imports(tree, package)),
        bindings=tuple(
            (_base(node, package), alias.name, alias.asname or alias.name)
            for node in code
            if isinstance(node, ast.ImportFrom)
            for alias in node.names
        ),
        names=frozenset(
            node.value
            for node in ast.walk(tree)
            if isinstance(node, ast.Constant)
            and isinstance(node.value, str)
            and _FILE_NAME.fullmatch(node.value)
        ),
        holds_code=bool(code),
        hands_on=bool(code) and all(map(_only_binds, code)),
    )


def _imports(tree: ast.Module, package: str) -> Iterator[tuple[str, str | None]]:
    for node in _runtime_nodes(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, None) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from ((_base(node, package), alias.name) for alias in node.names)
        elif isinstance(node, ast.JoinedStr):
            begins = [str(part.value) for part in node.values[:1] if isinstance(part, ast.Constant)]
            yield from ((text[1], _ANY) for text in map(_BEGINS_NAME.fullmatch, begins) if text)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            spelt = _MODULE_NAME.fullmatch(node.value)
            if spelt:
                yield spelt[1], None


def _base(node: ast.ImportFrom, package: str) -> str:
    """Return the module that a ``from ... import`` is about, its dots resolved."""
    above = package.split(".")[: len(package.split(".")) - node.level + 1]
    return ".".join([*(above if node.level else ()), *filter(None, [node.module])])


def _runtime_nodes(tree: ast.AST) -> Iterator[ast.AST]:
    """Yield all nodes but those below ``if TYPE_CHECKING``."""
    yield tree
    for child in ast.iter_child_nodes(tree):
        is_typing = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)
        if not is_typing:
            yield from _runtime_nodes(child)


def _is_text(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def _only_binds(node: ast.stmt) -> bool:
    if isinstance(node, ast.Assign):
        return ast.unparse(node.targets[0]) == "__all__"
    return isinstance(node, ast.ImportFrom)
