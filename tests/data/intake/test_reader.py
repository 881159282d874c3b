"""A record becomes a row, or the reason why it cannot; tasks match whole words."""

import re
from pathlib import Path

import pytest
import yaml
from repository import ROOT
from user_rows import encoded, picture, row_params

from danceflow.data.intake.reader import (
    BadRow,
    CheckedRow,
    RowReader,
    SkippedRow,
    TaskMap,
    words_of,
)
from danceflow.data.intake.sources import RawRecord
from danceflow.errors import DataError

GOOD = {"id": "7", "kind": "make", "text": "a  pet ", "before": None, "after": "after.png"}
OMNIEDIT_TASKS = (
    "addition", "attribute_modification", "background", "background_swap", "env", "environment",
    "object_swap", "removal", "style", "swap",
)  # fmt: skip
"""As its releases spell them."""
EDIT = GOOD | {"kind": "Object-Swap", "before": "before.png"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    picture(1).save(tmp_path / "before.png")
    picture(2).save(tmp_path / "after.png")
    picture(3, (20, 30)).save(tmp_path / "tall.png")
    picture(4, (4, 4)).save(tmp_path / "tiny.png")
    (tmp_path / "broken.png").write_bytes(encoded(picture(5))[:200])
    return tmp_path


def read(folder: Path, cells: dict, **changes) -> CheckedRow | BadRow | SkippedRow:
    reader = RowReader(row_params(**changes).data, folder)
    return reader.read(RawRecord("pets.csv: row 3", 2, cells))


def test_a_good_row(folder: Path) -> None:
    row = read(folder, GOOD)
    assert isinstance(row, CheckedRow)
    assert (row.bucket, row.category, row.variant) == ("t2i", "make", "standard")
    assert (row.uid, row.prompt, row.split, row.source) == ("7", "a pet", "", None)
    edit = read(folder, EDIT)
    assert isinstance(edit, CheckedRow)
    assert (edit.bucket, edit.category) == ("local_edit", "object_swap")
    assert edit.source is not None
    assert edit.source_digest != edit.target_digest == row.target_digest
    without = read(folder, {name: cell for name, cell in GOOD.items() if name != "before"})
    assert without == row


FURTHER = {"uid": "id", "task": "kind", "prompt": "text", "source": "before", "target": "after"}


def test_further_pictures_stand_in_columns_or_in_a_list(folder: Path) -> None:
    columns = {**FURTHER, "source_2": "second", "source_3": "third"}
    both = {"second": "tall.png", "third": None}
    found = read(folder, EDIT | both, columns=columns)
    listed = read(folder, EDIT | {"before": ["before.png", {"path": "tall.png"}, ""]})
    assert isinstance(found, CheckedRow)
    assert found == listed
    assert found.source_2 is not None
    assert found.source_3 is None
    assert len(found.further_digests) == 16
    for cells, field, message in (
        (both | {"before": ""}, "before", "is empty, and source_2 is not"),
        (both | {"second": "tiny.png"}, "second", "is 4 x 4 pixels, less than 8"),
        (both | {"third": "nowhere.png"}, "third", "nowhere.png"),
        ({"before": ["before.png"] * 4}, "before", "4 pictures are given, at most 3 are taken"),
    ):
        bad = read(folder, EDIT | cells, columns=columns)
        assert isinstance(bad, BadRow)
        assert bad.field == field
        assert message in bad.reason


@pytest.mark.parametrize(
    ("change", "field", "words"),
    [
        ({"after": "nowhere.png"}, "after", r"nowhere\.png: No such file"),
        ({"after": ""}, "after", "is empty"),
        ({"after": "broken.png"}, "after", "is a damaged picture"),
        ({"after": "tiny.png"}, "after", "target is 4 x 4 pixels, less than 8"),
        ({"after": "tall.png"}, "after", "cannot lie over each other"),
        ({"after": 5}, "after", "should be a picture or its path, found int"),
        ({"before": "broken.png"}, "before", "is a damaged picture"),
        ({"text": "  "}, "text", "is empty"),
        ({"text": None}, "text", "is empty"),
        ({"text": ["", None]}, "text", "is empty"),
        ({"text": {"a": 1}}, "text", "should be text, found dict"),
        ({"kind": None}, "kind", "is empty"),
        ({"id": True}, "id", "should be text, found bool"),
    ],
)
def test_a_bad_field_is_named(folder: Path, change: dict, field: str, words: str) -> None:
    import re

    row = read(folder, EDIT | change)
    assert isinstance(row, BadRow)
    assert (row.place, row.field) == ("pets.csv: row 3", field)
    assert re.search(words, row.reason), row.reason


def test_rows_that_are_left_out_say_why(folder: Path) -> None:
    other = read(folder, GOOD | {"kind": "remake"})
    assert other == SkippedRow("task 'remake' belongs to no bucket")
    columns = {"prompt": "text", "target": "after", "task": "kind", "score": "o_score"}
    scored = {"columns": columns, "min_score": 9.0}
    assert read(folder, GOOD | {"o_score": 8.5}, **scored) == SkippedRow("score below 9")
    assert isinstance(read(folder, GOOD | {"o_score": "9.5"}, **scored), CheckedRow)
    bad = read(folder, GOOD | {"o_score": "good"}, **scored)
    assert bad == BadRow("pets.csv: row 3", "o_score", "should be a number, found 'good'")


def test_pictures_come_as_paths_bytes_or_cells_of_datasets(folder: Path) -> None:
    data = (folder / "after.png").read_bytes()
    cells = ("after.png", data, {"bytes": data, "path": None}, {"bytes": None, "path": "after.png"})
    rows = [read(folder, GOOD | {"after": cell}) for cell in cells]
    assert len({row.target for row in rows if isinstance(row, CheckedRow)}) == 1
    assert all(isinstance(row, CheckedRow) for row in rows)


def test_one_of_several_wordings_is_chosen_by_the_row(folder: Path) -> None:
    wordings = ["swap it", "please swap it", "swap"]
    rows = [read(folder, EDIT | {"text": wordings, "id": str(n)}) for n in range(30)]
    prompts = [row.prompt for row in rows if isinstance(row, CheckedRow)]
    assert set(prompts) == set(wordings)
    again = [read(folder, EDIT | {"text": wordings, "id": str(n)}) for n in range(30)]
    assert prompts == [row.prompt for row in again if isinstance(row, CheckedRow)]


def test_splits_and_specs(folder: Path) -> None:
    columns = {"prompt": "text", "target": "after", "task": "kind", "split": "s", "spec": "facts"}
    row = read(folder, GOOD | {"s": "Dev", "facts": '{"kind": "x"}'}, columns=columns)
    assert isinstance(row, CheckedRow)
    assert (row.split, row.spec) == ("validation", '{"kind": "x"}')
    assert row.uid == "pets-00000002"
    bad = read(folder, GOOD | {"s": "some"}, columns=columns)
    assert isinstance(bad, BadRow)
    assert bad.field == "s"
    bad = read(folder, GOOD | {"s": "test", "facts": "[1]"}, columns=columns)
    assert bad == BadRow("pets.csv: row 3", "facts", "is no JSON object")


@pytest.mark.parametrize(
    ("task", "found"),
    [
        ("background_swap", ("global", "background_swap")),
        ("BackgroundSwap", ("global", "background_swap")),
        ("object swap (hard)", ("local", "swap")),
        ("swapping", None),
        ("remove-object", ("local", "remove")),
        ("removed object", None),
        ("style", ("global", "style")),
        ("lifestyle", None),
    ],
)
def test_tasks_match_whole_words(task: str, found: tuple[str, str] | None) -> None:
    tasks = TaskMap({"local": ["swap", "remove"], "global": ["background swap", "style"]})
    assert tasks.find(task) == found


def examples() -> list[str]:
    """The files that show a user how the preset of OmniEdit's columns is used."""
    paths = (*ROOT.glob("docs/howto/*.md"), *ROOT.glob("recipes/**/*.yaml"))
    found = [path for path in paths if "columns: omniedit" in path.read_text()]
    return sorted(path.relative_to(ROOT).as_posix() for path in found)


@pytest.mark.parametrize("path", examples())
def test_every_example_takes_all_tasks_of_omniedit(path: str) -> None:
    """Whoever copies one loses no row to a task that is named otherwise."""
    text = (ROOT / path).read_text()
    if path.endswith(".md"):
        text = re.search(r"```yaml\n(input:\n[^`]*columns: omniedit.*?)```", text, re.DOTALL)[1]
    content = yaml.safe_load(text)
    tasks = TaskMap((content.get("input") or content["data"]["input"])["tasks"])
    assert [task for task in OMNIEDIT_TASKS if tasks.find(task) is None] == []


def test_tasks_that_contradict_each_other_are_told() -> None:
    with pytest.raises(DataError, match="'Swap' stands in local and global"):
        TaskMap({"local": ["swap"], "global": ["Swap"]})
    with pytest.raises(DataError, match="'--' holds no word"):
        TaskMap({"local": ["--"]})
    tasks = TaskMap({"local": ["swap"], "global": ["style"]})
    with pytest.raises(DataError, match="belong to different buckets"):
        tasks.find("swap the style")


def test_words() -> None:
    assert words_of("attribute_modification-2") == ("attribute", "modification", "2")
    assert words_of("Farbe ändern") == ("farbe", "ändern")
