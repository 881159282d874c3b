"""What ``danceflow explain`` says of a parameter: its meaning, its values and who uses it."""

import json
import textwrap
from collections.abc import Mapping
from typing import Any

from danceflow.params.meaning import ANY_NAME, is_held, meaning_of
from danceflow.params.sections import Params
from danceflow.stages import STAGES

_WIDTH = 96


def explanation(name: str | None, params: Mapping[str, Any] | None) -> str:
    """Return what a parameter or a section means, in lines.

    Args:
        name: dotted; None: the sections.
        params: the content of the checkout's ``params.yaml``, to say what stands there; None: of
            none.

    Raises:
        UsageError: there is no such parameter; the message names the nearest.
    """
    if name is None:
        texts = {part: meaning_of(part).text for part in Params.model_fields}
        return "\n".join(_entries(texts))
    found = meaning_of(name)
    told = {"meaning": found.text, "values": found.values}
    if params is not None and not found.parts:
        told["here"] = _here(params, name)
    users = [stage.name for stage in STAGES.values() if is_held(found.name, stage.params)]
    told["used in"] = (
        f"the key of {', '.join(users)}: another value runs them anew"
        if users
        else "no stage's key: another value runs no stage"
    )
    lines = [found.name, *_entries(told)]
    if found.parts:
        lines += ["", *_entries(found.parts)]
    return "\n".join(lines)


def _entries(texts: Mapping[str, str]) -> list[str]:
    """Return a block for each name, its text beside it."""
    width = max(map(len, texts)) + 2
    return [
        textwrap.fill(
            text,
            _WIDTH,
            initial_indent=f"  {name:<{width}}",
            subsequent_indent=" " * (width + 2),
            break_long_words=False,
        )
        for name, text in texts.items()
    ]


def _here(params: Mapping[str, Any], name: str) -> str:
    value: Any = params
    for part in name.split("."):
        if part == ANY_NAME and isinstance(value, Mapping):
            return ", ".join(value)
        value = value.get(part) if isinstance(value, Mapping) else None
    return json.dumps(value)
