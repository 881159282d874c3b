"""What a card tells of where a student comes from: its base, its teachers, its data.

It is read from the package's manifest. A registered version keeps it in its tags, so that its page
tells it without the package.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

TAG = "student.about"
MAX_TAG = 5000
"""Characters; MLflow refuses longer tags of a version."""
_SHOWN = 12
_NUM_LISTED = 8


@dataclass(frozen=True)
class About:
    """Where a student comes from.

    Attributes:
        base: SHA-256 of the network that it is an adapter on; empty: it has a network of its own.
        where: where that was: a folder, or a name on the hub.
        is_packed: whether it goes along.
        teachers: by name, the licence that is stated; ``None``: none is.
        data: by capability, the digest of the rows that were trained on.
    """

    base: str = ""
    where: str = ""
    is_packed: bool = False
    teachers: Mapping[str, str | None] = field(default_factory=dict)
    data: Mapping[str, str] = field(default_factory=dict)

    @staticmethod
    def of(meta: Mapping[str, Any]) -> "About":
        """Return what a package's manifest tells; older ones tell less."""
        base: Mapping[str, Any] = meta.get("base", {})
        capabilities: Mapping[str, Mapping[str, str]] = meta.get("capabilities", {})
        licences: Mapping[str, str | None] = meta.get("licences", {})
        names = dict.fromkeys(item["teacher"] for item in capabilities.values())
        if base.get("teacher"):
            names.setdefault(base["teacher"])
        return About(
            base=base.get("network", ""),
            where=base.get("where", ""),
            is_packed=any(name.startswith("base/") for name in meta.get("files", {})),
            teachers={name: licences.get(name) for name in names},
            data={name: item["data"] for name, item in capabilities.items()},
        )

    @staticmethod
    def of_tags(tags: Mapping[str, str]) -> "About | None":
        """Return what a version's tags tell, ``None`` for one of an earlier version."""
        return About(**json.loads(tags[TAG])) if TAG in tags else None

    def as_tags(self) -> dict[str, str]:
        """Return it as tags of a version."""
        told = asdict(self)
        if len(json.dumps(told)) > MAX_TAG:  # of very many teachers; the package tells all
            told |= {"data": {}, "teachers": dict(list(self.teachers.items())[:_NUM_LISTED])}
        return {TAG: json.dumps(told)}

    @property
    def licence(self) -> str | None:
        """The licence that all teachers state, ``None`` where they do not agree or do not say."""
        stated = set(self.teachers.values())
        return stated.pop() if len(stated) == 1 else None

    def lines(self) -> list[str]:
        """Return a line for the base, the teachers with their licences, and the data."""
        if self.base:
            place = "it goes along" if self.is_packed else "it must be there"
            base = f"Base: network {self.base[:_SHOWN]}, from {self.where}; {place}"
        else:
            base = "Base: none, its network is its own"
        teachers = [
            f"{name} ({licence or 'licence not stated'})" for name, licence in self.teachers.items()
        ]
        lines = [base, f"Teachers: {_listed(teachers)}"] if teachers else [base]
        if self.data:
            digests = [f"{name} {digest}" for name, digest in self.data.items()]
            lines.append(f"Trained on (digests of rows): {_listed(digests)}")
        return lines


def _listed(texts: list[str]) -> str:
    """Return the first texts, and how many follow."""
    more = f" and {len(texts) - _NUM_LISTED} more" * (len(texts) > _NUM_LISTED)
    return ", ".join(texts[:_NUM_LISTED]) + more
