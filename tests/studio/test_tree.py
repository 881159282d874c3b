"""The tree on disk: it grows, is undone, and is there again after a restart or a kill."""

import sqlite3
import threading
from pathlib import Path

import pytest
from PIL import Image

from danceflow.errors import DataError, UsageError
from danceflow.pictures import decode, png_bytes
from danceflow.studio.recipe import Recipe, read_recipe
from danceflow.studio.tree import DATABASE, Made, Tree

RED, BLUE = (Image.new("RGB", (8, 8), name) for name in ("red", "blue"))


def recipe(prompt: str = "a circle", **changes: object) -> Recipe:
    fields = {
        "prompt": prompt,
        "capability": "text to image",
        "seed": 1,
        "steps": 4,
        "guidance": 1.0,
        "size": "8x8",
        "model": "scenes",
        "version": 2,
        "digest": "",
    }
    return Recipe.model_validate(fields | changes)


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path / "tree")


def test_a_lineage_is_there_again_after_a_restart(tree: Tree) -> None:
    (root,) = tree.add(None, [Made(RED, recipe(), seconds=0.25, notes=("is cut",))])
    edit = recipe("make it blue", capability="edit")
    mask = Image.new("L", (8, 8), 255)
    (child, sibling) = tree.add(
        root.id, [Made(BLUE, edit, RED, mask, 0.1, 0.5, 0.25), Made(RED, edit, RED)]
    )
    tree.rename(child.id, "  dusk   light ")
    tree.pin(child.id)
    tree.close()
    again = Tree(tree.folder)
    assert [node.id for node in again.nodes(archived=False)] == [root.id, child.id, sibling.id]
    lineage = again.lineage(child.id)
    assert [node.id for node in lineage] == [root.id, child.id]
    found = lineage[-1]
    assert (found.name, found.pinned, found.kept, found.kept_exactly) == (
        "dusk light",
        True,
        0.5,
        0.25,
    )
    assert lineage[0].notes == ("is cut",)
    assert again.picture(found.picture).tobytes() == BLUE.tobytes()
    carried = read_recipe(decode(again.file(found)))
    assert carried is not None
    assert carried.recipe == edit
    assert len(carried.sources) == 1
    assert carried.mask is not None


def test_every_change_is_undone_and_done_again(tree: Tree) -> None:
    (node,) = tree.add(None, [Made(RED, recipe())])
    tree.rename(node.id, "sun")
    tree.pin(node.id)
    tree.archive(node.id)
    assert tree.nodes(archived=False) == []
    words = [tree.undo() for _ in range(4)]
    assert words == ["archiving", "pinning", "renaming", "making"]
    assert tree.nodes(archived=True) == []
    with pytest.raises(UsageError, match="nothing to undo"):
        tree.undo()
    with pytest.raises(UsageError, match="undo may bring it back"):
        tree.node(node.id)
    assert [tree.redo() for _ in range(4)] == words[::-1]
    found = tree.node(node.id)
    assert (found.title, found.pinned, found.archived) == ("sun", True, True)
    tree.undo()
    tree.rename(node.id, "moon")
    with pytest.raises(UsageError, match="nothing to do again"):
        tree.redo()


def test_everybody_undoes_their_own_changes_and_none_that_others_went_on_from(tree: Tree) -> None:
    (mine,) = tree.add(None, [Made(RED, recipe())], "me")
    (theirs,) = tree.add(mine.id, [Made(BLUE, recipe(), RED)], "they")
    with pytest.raises(UsageError, match="somebody went on from this picture"):
        tree.undo("me")
    tree.pin(mine.id, "me")
    assert tree.undo("they") == "making"
    assert [node.id for node in tree.nodes(archived=False)] == [mine.id]
    assert [tree.undo("me"), tree.undo("me")] == ["pinning", "making"]
    assert tree.redo("me") == "making"
    assert tree.redo("they") == "making"
    assert tree.node(theirs.id).parent == mine.id


def test_what_came_from_an_archived_picture_is_put_away_with_it(tree: Tree) -> None:
    (root,) = tree.add(None, [Made(RED, recipe())])
    (child,) = tree.add(root.id, [Made(BLUE, recipe(), RED)])
    tree.archive(root.id)
    assert tree.nodes(archived=False) == []
    assert [node.id for node in tree.nodes(archived=True)] == [root.id, child.id]
    tree.archive(root.id)
    assert len(tree.nodes(archived=False)) == 2


def test_two_processes_and_several_threads_share_a_tree(tree: Tree) -> None:
    other = Tree(tree.folder)
    before = other.revision

    def work(number: int) -> None:
        for place in range(5):
            (tree if number % 2 else other).add(None, [Made(RED, recipe(f"{number} {place}"))])

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(tree.nodes(archived=False)) == len(other.nodes(archived=False)) == 20
    assert other.revision != before
    now = other.revision
    tree.add(None, [Made(RED, recipe("one more"))])
    assert other.revision != now


def test_prompts_are_told_once_the_latest_first(tree: Tree) -> None:
    for prompt in ("a ring", "a cross", "a ring"):
        tree.add(None, [Made(RED, recipe(prompt))])
    tree.add(None, [Made(RED, recipe("make it blue", capability="edit")), Made(BLUE)])
    assert tree.prompts() == [("make it blue", True), ("a ring", False), ("a cross", False)]


def test_a_missing_or_damaged_file_is_told_and_written_anew_with_the_same_pixels(
    tree: Tree, caplog: pytest.LogCaptureFixture
) -> None:
    (node,) = tree.add(None, [Made(RED, recipe())])
    place = tree.folder / "pictures" / f"{node.picture}.png"
    whole = place.read_bytes()
    for damage in (whole[:40], png_bytes(BLUE)):
        place.write_bytes(damage)
        with pytest.raises(DataError, match="^the file of this picture is damaged: bring"):
            tree.file(node)
        assert str(place) in caplog.text
        tree.add(node.id, [Made(BLUE, recipe("make it blue", capability="edit"), RED)])
        assert place.read_bytes() == whole
    place.unlink()
    with pytest.raises(DataError, match="^the file of this picture is gone: bring"):
        tree.file(node)
    tree.mend(node, [BLUE, RED])
    assert place.read_bytes() == whole


def test_names_have_an_end(tree: Tree) -> None:
    (node,) = tree.add(None, [Made(RED, recipe())])
    with pytest.raises(UsageError, match="at most 80 characters, this has 81"):
        tree.rename(node.id, "x" * 81)
    with pytest.raises(UsageError, match="not in the tree"):
        tree.add("gone", [Made(RED)])


def test_folders_that_hold_something_else_are_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(UsageError, match="no studio can be kept here"):
        Tree(tmp_path / "file")
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / DATABASE).write_text("this is no database, by far " * 100)
    with pytest.raises(UsageError, match="no studio can be kept here"):
        Tree(tmp_path / "text")
    Tree(tmp_path / "new").close()
    with sqlite3.connect(tmp_path / "new" / DATABASE) as db:
        db.execute("PRAGMA user_version = 9")
    with pytest.raises(UsageError, match="another version"):
        Tree(tmp_path / "new")
