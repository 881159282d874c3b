"""What parameters mean: each has words, and names are found however they are written."""

import pytest
from repository import ROOT

from danceflow.errors import UsageError
from danceflow.params.meaning import is_held, meaning_of, parameter_names
from danceflow.params.sections import Params
from danceflow.params.yaml12 import read_yaml


@pytest.mark.parametrize("name", list(parameter_names()))
def test_every_parameter_has_a_meaning_and_values(name: str) -> None:
    found = meaning_of(name)
    assert found.name == name
    assert found.text.endswith(".")
    assert found.text[0].isupper()
    assert found.values not in ("", "any value")
    assert not found.parts


def test_every_value_of_the_default_has_a_meaning() -> None:
    def names(data: object, path: str = "") -> list[str]:
        if not isinstance(data, dict) or path.endswith((".category_weights", "min_retention")):
            return [path]
        return [n for key in data for n in names(data[key], f"{path}.{key}" if path else key)]

    found = names(read_yaml(ROOT / "params.yaml"))
    assert len(found) > 100
    for name in found:
        assert meaning_of(name).text


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("run.compile", "true | false"),
        ("run.seed", "a whole number at least 0"),
        ("distill.num_queries", "a whole number at least 1, or all, or null"),
        ("evaluate.judge", "a section, or null"),
        ("capabilities", "names, each with its section"),
        ("gate.min_retention", "names, each a number at least 0"),
        ("evaluate.seeds", "a list, each a whole number at least 0"),
        ("distill.ema_decay", "a number at least 0 below 1"),
    ],
)
def test_values_are_told_in_words(name: str, values: str) -> None:
    assert meaning_of(name).values == values


def test_a_section_tells_its_parts() -> None:
    assert list(meaning_of("gate").parts) == list(
        Params.model_fields["gate"].annotation.model_fields
    )
    assert "<name>.weight" in meaning_of("capabilities").parts


@pytest.mark.parametrize(
    "name", ["distil", "distill.qery", "run.seed.more", "", "capabilities.a.b"]
)
def test_an_unknown_name_is_an_error(name: str) -> None:
    with pytest.raises(UsageError, match="unknown parameter"):
        meaning_of(name)


def test_the_nearest_is_named() -> None:
    with pytest.raises(UsageError, match="did you mean 'distill.query'"):
        meaning_of("distill.qery")


@pytest.mark.parametrize(
    ("name", "held", "expected"),
    [
        ("distill.query", ("distill",), True),
        ("distill", ("distill.init",), True),
        ("distill.query", ("distill.init", "run"), False),
        ("capabilities.<name>.weight", ("capabilities.{item}.bucket",), False),
        ("capabilities.<name>.bucket", ("capabilities.{item}.bucket",), True),
        ("tracking.uri", ("run", "data"), False),
    ],
)
def test_what_holds_a_parameter(name: str, held: tuple[str, ...], expected: bool) -> None:
    assert is_held(name, held) is expected
