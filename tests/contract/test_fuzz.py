"""Whatever somebody writes into a file: parameters, a sweep, a prompt or a table, or one error."""

import copy
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st
from params_files import dump_yaml
from repository import ROOT
from tiny_models import small_sd3

from danceflow.data.intake.sources import TableSource
from danceflow.data.sizes import read_size
from danceflow.errors import DanceflowError
from danceflow.params.read import load_params, override, parse_params, read_assignments
from danceflow.params.rules import require_weights
from danceflow.params.sections import Params
from danceflow.params.sweep import cells_of, read_sweep
from danceflow.params.yaml12 import read_yaml

GOOD = read_yaml(ROOT / "params.yaml")
SWEEP = read_yaml(ROOT / "sweeps" / "ablation-init.yaml")
FUZZ = settings(max_examples=150, deadline=None, derandomize=True, database=None)

WORDS = st.text(max_size=12) | st.sampled_from(
    ["null", "~", "1e999", ".nan", "0x1", "<<", "&a", "*a"]
)
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(min_value=10**30, max_value=10**60)
    | st.floats()
    | WORDS
    | st.dates()
    | st.binary(max_size=8)
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(WORDS | st.integers(), inner, max_size=4)
    ),
    max_leaves=8,
)


def places(data: Any, start: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The places of all values in nested data."""
    if not isinstance(data, dict | list) or not data:
        return [start]
    items = data.items() if isinstance(data, dict) else enumerate(data)
    return [start, *(place for key, value in items for place in places(value, (*start, key)))]


PLACES = places(GOOD)[1:]
SWEEP_PLACES = places(SWEEP)[1:]


def put(data: Any, place: tuple[Any, ...], value: Any, *, how: str) -> Any:
    """Return a copy with one value replaced, removed, or joined by one of a new name."""
    data = copy.deepcopy(data)
    inner = data
    for key in place[:-1]:
        inner = inner[key]
    if how == "remove":
        del inner[place[-1]]
    elif how == "join" and isinstance(inner, dict):
        inner[value if isinstance(value, str) else repr(value)] = inner[place[-1]]
    else:
        inner[place[-1]] = value
    return data


def told(error: DanceflowError, start: str = "") -> None:
    text = str(error)
    assert error.exit_code == 2
    assert start in text[:4000]
    assert text.encode(errors="surrogatepass")
    assert "Traceback" not in text


def read(path: Path) -> None:
    """Read a params file as every command does; a fault is one error."""
    try:
        params = load_params(path)
        assert isinstance(params, Params)
        require_weights(params, path.parent, str(path))
    except DanceflowError as error:
        told(error)


def write_and_read(content: bytes) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "params.yaml"
        path.write_bytes(content)
        read(path)
        try:
            cells_of(read_sweep(path), str(path))
        except DanceflowError as error:
            told(error)


@FUZZ
@given(
    place=st.sampled_from(PLACES),
    value=VALUES,
    how=st.sampled_from(["replace", "remove", "join"]),
)
def test_any_value_at_any_place_of_the_parameters(place, value, how: str) -> None:
    try:
        parse_params(put(GOOD, place, value, how=how), "params.yaml")
    except DanceflowError as error:
        told(error, "params.yaml")


@FUZZ
@given(
    place=st.sampled_from(SWEEP_PLACES),
    value=VALUES,
    how=st.sampled_from(["replace", "remove", "join"]),
)
def test_any_value_at_any_place_of_a_sweep(place, value, how: str) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "s.yaml"
        path.write_text(dump_yaml(put(SWEEP, place, value, how=how)), "utf-8", "surrogatepass")
        try:
            cells_of(read_sweep(path), str(path))
        except DanceflowError as error:
            told(error)


@FUZZ
@given(data=VALUES)
def test_any_data_as_parameters(data: Any) -> None:
    write_and_read(yaml.safe_dump(data, allow_unicode=True).encode(errors="surrogatepass"))


@FUZZ
@given(
    content=st.binary(max_size=200)
    | st.text(max_size=200).map(lambda t: t.encode(errors="replace"))
)
@example(content=b"a: &a [*a]")
@example(content=b"run: &a {seed: 1}\nfamily: {<<: *a, <<: *a}")
@example(content=b"[" * 20_000)
@example(content=b"{a: " * 5_000)
@example(
    content=b"a: &a [x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a]\n"
    b"c: &c [*b,*b,*b,*b,*b,*b,*b,*b,*b]\nd: &d [*c,*c,*c,*c,*c,*c,*c,*c,*c]\n"
    b"e: &e [*d,*d,*d,*d,*d,*d,*d,*d,*d]\nf: [*e,*e,*e,*e,*e,*e,*e,*e,*e]"
)
@example(content=b"!!python/object/apply:os.system ['touch pwned']")
@example(content=b"a: !!python/name:os.system\n")
@example(content=b"a: !x y")
@example(content=b"\xff\xfea\0:\0")
@example(content=b"? [a, b]\n: c\n")
@example(content=b"--- a\n--- b\n")
@example(content=b"a: 2001-01-01T00:00:00Z\n")
@example(content=b"a: " + b"9" * 6000)
@example(content=b"run: {seed: 0x" + b"f" * 9000 + b"}")
def test_any_bytes_as_parameters(content: bytes) -> None:
    write_and_read(content)


def test_shares_without_end_are_not_written_out() -> None:
    """A few lines that mean a billion words are refused without being repeated in the error."""
    lines = ["a0: &a0 [lol, lol, lol, lol, lol, lol, lol, lol, lol]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 10)]
    with TemporaryDirectory() as folder:
        path = Path(folder) / "params.yaml"
        path.write_text("\n".join(lines))
        with pytest.raises(DanceflowError) as caught:
            load_params(path)
    assert len(str(caught.value)) < 5000


@FUZZ
@given(texts=st.lists(st.text(max_size=20) | st.builds("{}={}".format, WORDS, WORDS), max_size=3))
def test_any_assignments(texts: list[str]) -> None:
    try:
        parse_params(override(GOOD, read_assignments(texts)), "params.yaml with --set")
    except DanceflowError as error:
        told(error)


@FUZZ
@given(text=st.text(max_size=12) | st.from_regex(r"-?\d{0,30}x-?\d{0,30}", fullmatch=True))
def test_any_size(text: str) -> None:
    try:
        read_size(text)
    except DanceflowError as error:
        told(error)


FAMILY = small_sd3()
PROMPTS = st.text(max_size=200) | st.lists(
    st.sampled_from(["a", "red", "circle", "two", "left", "of", "the", "\n", "<pad>", "\0"]),
    max_size=30,
).map(" ".join)


@FUZZ
@given(prompt=PROMPTS)
@example(prompt="")
@example(prompt="a " * 5000)
def test_any_prompt_is_read(prompt: str) -> None:
    condition = FAMILY.condition([prompt])
    assert all(bool(table.isfinite().all()) for table in condition.tensors.values())
    FAMILY.unknown_words(prompt)
    FAMILY.readings(prompt, edits=False)


@FUZZ
@given(
    content=st.binary(max_size=300),
    ending=st.sampled_from([".csv", ".jsonl", ".parquet"]),
    head=st.sampled_from([b"", b"id,text\n", b'{"id": "', b"PAR1"]),
)
def test_any_bytes_as_a_table(content: bytes, ending: str, head: bytes) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder) / f"t{ending}"
        path.write_bytes(head + content)
        try:
            source = TableSource(path)
            list(source.columns())
            for record in source.records(0, 1, 0):
                assert record.place.startswith("t.")
        except DanceflowError as error:
            told(error, "t.")
