"""The tree of pictures on disk: who came from whom, with every recipe, and what can be undone.

Rows lie in SQLite, pictures in PNG files beside it that carry their recipes. A picture's file is
written before its row, so that a kill leaves a file too many and never a row too few. Several
processes may use one folder.
"""

import json
import logging
import secrets
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from PIL import Image

from danceflow.errors import DataError, UsageError
from danceflow.ops.files import write_bytes
from danceflow.pictures import png_bytes, read_file, read_own
from danceflow.studio.pixels import digest_of
from danceflow.studio.recipe import Recipe, with_recipe

_LOG = logging.getLogger(__name__)

DATABASE = "studio.db"
_VERSION = 1
_MAX_TITLE = 80
_SCHEMA = """
CREATE TABLE nodes (
  id TEXT PRIMARY KEY, parent TEXT REFERENCES nodes(id), title TEXT NOT NULL,
  recipe TEXT, picture TEXT NOT NULL, seen TEXT, further TEXT NOT NULL,
  mask TEXT, width INTEGER NOT NULL,
  height INTEGER NOT NULL, seconds REAL, kept REAL, kept_exactly REAL, notes TEXT NOT NULL,
  made TEXT NOT NULL, pinned INTEGER NOT NULL DEFAULT 0, archived INTEGER NOT NULL DEFAULT 0,
  gone INTEGER NOT NULL DEFAULT 0
);
CREATE INDEX nodes_by_parent ON nodes(parent);
CREATE TABLE actions (
  id INTEGER PRIMARY KEY AUTOINCREMENT, nodes TEXT NOT NULL, field TEXT NOT NULL,
  before TEXT NOT NULL, after TEXT NOT NULL, person TEXT NOT NULL,
  undone INTEGER NOT NULL DEFAULT 0
);
"""
_WORDS = {"gone": "making", "title": "renaming", "pinned": "pinning", "archived": "archiving"}


@dataclass(frozen=True)
class Node:
    """One picture of the tree.

    Attributes:
        id: its name, for good.
        parent: the node that it was made from; None: a root.
        title: what the designer calls it; empty: the prompt.
        recipe: how it was made; None: it was brought.
        picture: SHA-256 of its pixels.
        seen: SHA-256 of the source as the model saw it; None: it has none.
        further: SHA-256 of the pictures beside it, likewise.
        mask: SHA-256 of what might change; None: everything.
        width: pixels.
        height: pixels.
        seconds: that it took; None: it was brought.
        kept: share of the source's pixels that stayed, within a tolerance.
        kept_exactly: share of the source's pixels that stayed to the last level.
        notes: what the model did not see of the prompt.
        made: when, UTC, ISO 8601.
        pinned: whether it stands first.
        archived: whether it is put away.
    """

    id: str
    parent: str | None
    title: str
    recipe: Recipe | None
    picture: str
    seen: str | None
    further: tuple[str, ...]
    mask: str | None
    width: int
    height: int
    seconds: float | None
    kept: float | None
    kept_exactly: float | None
    notes: tuple[str, ...]
    made: str
    pinned: bool
    archived: bool

    @property
    def name(self) -> str:
        """What it is called."""
        return self.title or (self.recipe.prompt if self.recipe else "a picture of yours")


@dataclass(frozen=True)
class Made:
    """A picture that is to join the tree.

    Attributes:
        picture: RGB.
        recipe: how it was made; None: it is brought.
        seen: the source as the model saw it.
        mask: what might change, mode L.
        seconds: that it took.
        kept: share of the source that stayed, within a tolerance.
        kept_exactly: share of the source that stayed to the last level.
        notes: what the model did not see of the prompt.
        title: what it is called; empty: its prompt.
        further: the pictures beside the source, as the model saw them.
    """

    picture: Image.Image
    recipe: Recipe | None = None
    seen: Image.Image | None = None
    mask: Image.Image | None = None
    seconds: float | None = None
    kept: float | None = None
    kept_exactly: float | None = None
    notes: Sequence[str] = ()
    title: str = ""
    further: Sequence[Image.Image] = ()


class Tree:
    """The tree in a folder. Several threads may use it."""

    def __init__(self, folder: Path) -> None:
        """Open the tree, or plant one.

        Raises:
            UsageError: the folder cannot be used, or holds another version's tree.
        """
        self.folder = folder
        self._lock = threading.RLock()
        self._count = 0
        try:
            (folder / "pictures").mkdir(parents=True, exist_ok=True, mode=0o700)
            self._db = sqlite3.connect(folder / DATABASE, check_same_thread=False, timeout=30.0)
            self._db.row_factory = sqlite3.Row
            with self._writing():
                (version,) = self._db.execute("PRAGMA user_version").fetchone()
                if version == 0:
                    for statement in filter(str.strip, _SCHEMA.split(";")):
                        self._db.execute(statement)
                    self._db.execute(f"PRAGMA user_version = {_VERSION}")
        except (OSError, sqlite3.Error) as error:
            raise UsageError(f"{folder}: no studio can be kept here: {error}") from error
        if version not in (0, _VERSION):
            raise UsageError(f"{folder}: the tree there is of another version of danceflow")

    def close(self) -> None:
        """Close the database."""
        with self._lock:
            self._db.close()

    @property
    def revision(self) -> str:
        """A word that changes with every change, also one of another process."""
        with self._lock:
            (others,) = self._db.execute("PRAGMA data_version").fetchone()
            return f"{others}.{self._count}"

    # -----------------------------------------------------------------------------------------
    # Looking

    def node(self, name: str) -> Node:
        """Return a node.

        Raises:
            UsageError: there is none of that name.
        """
        with self._lock:
            row = self._db.execute("SELECT * FROM nodes WHERE id = ? AND NOT gone", (name,))
            found = row.fetchone()
        if found is None:
            raise UsageError("this picture is not in the tree any more; undo may bring it back")
        return _node(found)

    def nodes(self, *, archived: bool) -> list[Node]:
        """Return all nodes, the oldest first; what is archived only where it is asked for."""
        with self._lock:
            rows = self._db.execute("SELECT * FROM nodes WHERE NOT gone ORDER BY made, rowid")
            found = [_node(row) for row in rows]
        shown: dict[str, Node] = {}
        for node in found:
            is_below = node.parent is None or node.parent in shown
            if is_below and (archived or not node.archived):
                shown[node.id] = node
        return list(shown.values())

    def lineage(self, name: str) -> list[Node]:
        """Return a node and what it came from, the root first.

        Raises:
            UsageError: there is no such node.
        """
        found = [self.node(name)]
        while (parent := found[0].parent) is not None:
            found.insert(0, self.node(parent))
        return found

    def by_picture(self, digest: str) -> Node | None:
        """Return the latest node that shows these pixels; None: there is none."""
        with self._lock:
            row = self._db.execute(
                "SELECT * FROM nodes WHERE picture = ? AND NOT gone ORDER BY rowid DESC LIMIT 1",
                (digest,),
            ).fetchone()
        return None if row is None else _node(row)

    def prompts(self) -> list[tuple[str, bool]]:
        """Return every prompt that was used and whether it was an edit, the latest first."""
        with self._lock:
            rows = self._db.execute(
                "SELECT json_extract(recipe, '$.prompt') AS prompt, "
                "json_extract(recipe, '$.capability') = 'edit' AS is_edit, max(rowid) AS latest "
                "FROM nodes WHERE recipe IS NOT NULL GROUP BY 1, 2 ORDER BY latest DESC"
            ).fetchall()
        return [(str(row["prompt"]), bool(row["is_edit"])) for row in rows]

    def picture(self, digest: str) -> Image.Image:
        """Return a picture or a mask by its digest.

        Raises:
            DataError: its file is gone or damaged; which one it is stands in the log alone.
        """
        place = self._place(digest)
        try:
            found = read_own(read_file(place))
            if digest_of(found) != digest:
                raise DataError("holds other pixels than it was written with")
        except DataError as error:
            _LOG.error("%s: %s", place, error)
            how = "damaged" if place.exists() else "gone"
            raise DataError(
                f"the file of this picture is {how}: bring the picture here again, or make it "
                "again by its recipe, and it is written anew"
            ) from error
        return found

    def file(self, node: Node) -> bytes:
        """Return a node's PNG file, which carries its recipe.

        Raises:
            DataError: a file is gone or damaged.
        """
        picture = self.picture(node.picture)
        if node.recipe is None:
            return png_bytes(picture, compress_level=6)
        names = [] if node.seen is None else [node.seen, *node.further]
        seen = [self.picture(digest) for digest in names]
        mask = None if node.mask is None else self.picture(node.mask).convert("L")
        return with_recipe(picture, node.recipe, seen, mask)

    # -----------------------------------------------------------------------------------------
    # Changing

    def add(self, parent: str | None, made: Sequence[Made], by: str = "") -> list[Node]:
        """Return the nodes of pictures that join the tree, below a node or as roots.

        Args:
            parent: the node that they were made from; None: they are roots.
            made: the pictures.
            by: who can undo it.

        Raises:
            UsageError: there is no such parent.
            DanceflowError: the disk is full.
        """
        if parent is not None:
            self.node(parent)
        names = [secrets.token_hex(6) for _ in made]
        now = datetime.now(UTC).isoformat(timespec="microseconds")
        rows = [
            (
                name,
                parent,
                item.title[:_MAX_TITLE],
                None if item.recipe is None else item.recipe.model_dump_json(),
                self._keep(item.picture),
                None if item.seen is None else self._keep(item.seen),
                json.dumps([self._keep(picture) for picture in item.further]),
                None if item.mask is None else self._keep(item.mask.convert("RGB")),
                *item.picture.size,
                item.seconds,
                item.kept,
                item.kept_exactly,
                json.dumps(list(item.notes)),
                now,
            )
            for name, item in zip(names, made, strict=True)
        ]
        with self._writing():
            self._db.executemany(
                "INSERT INTO nodes (id, parent, title, recipe, picture, seen, further, mask, "
                "width, height, seconds, kept, kept_exactly, notes, made) "
                "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                rows,
            )
            self._note(names, "gone", 1, 0, by)
        return [self.node(name) for name in names]

    def mend(self, node: Node, pictures: Sequence[Image.Image]) -> None:
        """Write those files of a node again that are gone or damaged, where they are at hand.

        Args:
            node: the node.
            pictures: RGB; what is none of the node's is left alone.

        Raises:
            DanceflowError: the disk is full.
        """
        own = {node.picture, node.seen, node.mask, *node.further}
        for picture in pictures:
            if digest_of(picture) in own:
                self._keep(picture)

    def rename(self, name: str, title: str, by: str = "") -> Node:
        """Return a node with another title; an empty one is its prompt.

        Raises:
            UsageError: there is no such node, or the title is too long.
        """
        title = " ".join(title.split())
        if len(title) > _MAX_TITLE:
            raise UsageError(f"a name has at most {_MAX_TITLE} characters, this has {len(title)}")
        return self._change(name, "title", title, by)

    def pin(self, name: str, by: str = "") -> Node:
        """Return a node that is pinned if it was not; raises ``UsageError`` if there is none."""
        return self._change(name, "pinned", not self.node(name).pinned, by)

    def archive(self, name: str, by: str = "") -> Node:
        """Return a node that is archived if it was not; raises ``UsageError`` if there is none."""
        return self._change(name, "archived", not self.node(name).archived, by)

    def undo(self, by: str = "") -> str:
        """Take somebody's last change back, and return what it was.

        Raises:
            UsageError: there is none, or somebody went on from what was made.
        """
        return self._step(by, undone=False, column="before", empty="undo")

    def redo(self, by: str = "") -> str:
        """Make the change that somebody took back last again, and return what it was.

        Raises:
            UsageError: there is none.
        """
        return self._step(by, undone=True, column="after", empty="do again")

    def _step(self, by: str, *, undone: bool, column: str, empty: str) -> str:
        with self._writing():
            action = self._db.execute(
                "SELECT * FROM actions WHERE undone = :undone AND person = :by "
                "ORDER BY CASE WHEN :undone THEN id ELSE -id END LIMIT 1",
                {"undone": undone, "by": by},
            ).fetchone()
            if action is None:
                raise UsageError(f"there is nothing to {empty}")
            field = action["field"]
            assert field in _WORDS
            names = json.loads(action["nodes"])
            if field == "gone" and not undone:
                self._require_ends(names)
            values = [(json.loads(action[column]), name) for name in names]
            self._db.executemany(f"UPDATE nodes SET {field} = ? WHERE id = ?", values)  # noqa: S608
            self._db.execute(
                "UPDATE actions SET undone = ? WHERE id = ?", (not undone, action["id"])
            )
        return _WORDS[field]

    def _change(self, name: str, field: str, after: Any, by: str) -> Node:
        before = getattr(self.node(name), field)
        if before != after:
            with self._writing():
                self._db.execute(f"UPDATE nodes SET {field} = ? WHERE id = ?", (after, name))  # noqa: S608
                self._note([name], field, before, after, by)
        return self.node(name)

    def _require_ends(self, names: Sequence[str]) -> None:
        """Check that nothing came from nodes; raises ``UsageError`` if something did."""
        for name in names:
            found = self._db.execute("SELECT 1 FROM nodes WHERE parent = ? AND NOT gone", (name,))
            if found.fetchone() is not None:
                raise UsageError("somebody went on from this picture: archive it instead")

    def _note(self, names: Sequence[str], field: str, before: Any, after: Any, by: str) -> None:
        """Remember a change; what its maker undid before it cannot be done again."""
        self._db.execute("DELETE FROM actions WHERE undone AND person = ?", (by,))
        self._db.execute(
            "INSERT INTO actions (nodes, field, before, after, person) VALUES (?, ?, ?, ?, ?)",
            (json.dumps(list(names)), field, json.dumps(before), json.dumps(after), by),
        )

    def _keep(self, picture: Image.Image) -> str:
        """Return the digest of a picture whose file is there and whole."""
        digest = digest_of(picture)
        place = self._place(digest)
        try:
            if place.exists():
                self.picture(digest)
                return digest
        except DataError:
            _LOG.warning("%s: is written anew", place)
        write_bytes(place, png_bytes(picture, compress_level=6))
        return digest

    def _place(self, digest: str) -> Path:
        return self.folder / "pictures" / f"{digest}.png"

    @contextmanager
    def _writing(self) -> Iterator[None]:
        with self._lock, self._db:
            self._db.execute("BEGIN IMMEDIATE")
            yield
            self._count += 1


def _node(row: sqlite3.Row) -> Node:
    found = dict(row)
    del found["gone"]
    recipe = found["recipe"]
    return Node(
        **{
            **found,
            "recipe": None if recipe is None else Recipe.model_validate_json(recipe),
            "further": tuple(json.loads(found["further"])),
            "notes": tuple(json.loads(found["notes"])),
            "pinned": bool(found["pinned"]),
            "archived": bool(found["archived"]),
        }
    )
