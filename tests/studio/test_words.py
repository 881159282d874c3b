"""Suggestions: they go on from what is written, and come from the training or the grammar."""

from pathlib import Path

from repository import ROOT

from danceflow.studio.words import Words, find_words

WORDS = Words(
    ("a red circle", "a red circle and a ring", "a photo of a red ring", "two rings"),
    ("make it grayscale", "make the red circle blue"),
)


def test_beginnings_come_first_then_prompts_with_the_words() -> None:
    found = WORDS.suggest("A red", [], 9, is_edit=False)
    assert found == ["a red circle", "a red circle and a ring", "a photo of a red ring"]
    found = WORDS.suggest("red r", [], 9, is_edit=False)
    assert found == ["a red circle and a ring", "a photo of a red ring"]
    assert WORDS.suggest("make the", [], 9, is_edit=True) == ["make the red circle blue"]


def test_prompts_of_before_stand_among_them_and_none_stands_twice() -> None:
    found = WORDS.suggest("a red", ["a red dusk", "a red circle"], 9, is_edit=False)
    assert found[:2] == ["a red dusk", "a red circle"]
    assert len(found) == len(set(found))


def test_what_is_written_is_not_suggested_and_nothing_comes_of_nothing() -> None:
    assert "two rings" not in WORDS.suggest("two rings", [], 9, is_edit=False)
    assert WORDS.suggest("unicorns", [], 9, is_edit=False) == []
    assert len(WORDS.suggest("", [], 3, is_edit=False)) == 3
    assert Words().suggest("", [], 3, is_edit=True) == []


def test_a_checkout_without_data_has_its_grammar(tmp_path: Path) -> None:
    for name in ("params.yaml", "dvc.yaml"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    found = find_words(tmp_path)
    assert any("circle" in prompt for prompt in found.create)
    assert any(prompt.startswith("remove the") for prompt in found.edit)
    assert any("sunset" in prompt for prompt in found.edit)


def test_no_checkout_and_parameters_that_cannot_be_read_suggest_nothing(tmp_path: Path) -> None:
    assert find_words(None) == Words()
    (tmp_path / "params.yaml").write_text("run: 3\n")
    assert find_words(tmp_path) == Words()
