"""What the headers of recipes tell."""

from pathlib import Path

import pytest
from repository import ROOT

from danceflow.params.recipes import read_recipe, recipes_below


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").rglob("*.yaml")), ids=lambda p: p.name)
def test_every_recipe_tells_what_it_is_for_needs_and_costs(path: Path) -> None:
    found = read_recipe(path)
    for text in (found.title, found.purpose, found.hardware, found.expected):
        assert len(text) > 10
        assert text.endswith(".")
        assert "  " not in text


def test_paragraphs_end_where_others_begin(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(
        "# A title\n# of two lines.\n#\n# Purpose: one\n# thing: two.\n#   a command\n# more\n"
        "# Data: rows.\n# Hardware: none.\n# Expected, `a command`, here so: soon.\n"
        "# Result: a file.\n\nrun:\n  # Purpose: none\n"
    )
    found = read_recipe(path)
    assert found.title == "A title of two lines."
    assert (found.purpose, found.hardware, found.expected) == ("one thing: two.", "none.", "soon.")


def test_those_on_top_come_first() -> None:
    folders = [item.path.parent.name for item in recipes_below(ROOT / "recipes")]
    assert folders == sorted(folders)
    assert set(folders) == {"recipes", "smoke"}
