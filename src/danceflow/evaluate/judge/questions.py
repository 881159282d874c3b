"""What a vision model is asked about a picture, and how its answers become scores.

Edits follow VIEScore (Ku et al. 2023): semantic consistency SC and perceptual quality PQ, each the
lower of two marks from 0 to 10, and O = sqrt(SC * PQ). Pictures made from a prompt follow GenEval
(Ghosh et al. 2023): right only if everything that was asked for is there.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

BEST_MARK = 10.0

_LONGEST_ANSWER = 100_000
_THINKING_ENDS = re.compile(r"</(?:think|thinking|thought|reasoning)>")
_THINKING_BEGINS = re.compile(r"<(?:think|thinking|thought|reasoning)>")
_BEGINS_WITH_OBJECT = re.compile(r"\s*(?:```\w*\s*)?\{")
_WRITTEN_MARK = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*(?:(?:/|out of)\s*10(?:\.0+)?)?\s*")
_WORDS: Mapping[str, bool] = {"yes": True, "true": True, "no": False, "false": False}

_EDIT_HINTS: Mapping[str, str] = {
    "subject_add": "The new object must be there, once, in a fitting place.",
    "subject_remove": "The object must be gone and what was behind it filled in credibly.",
    "subject_replace": "The old object must be gone and the new one stand in its place.",
    "color_alter": "Only the colour of the named object may change.",
    "material_alter": "Only the material of the named object may change; its shape must stay.",
    "motion_change": "The subject must move or pose as told and still be the same subject.",
    "ps_human": "The person may change only as told and must be recognised as the same person.",
    "text_change": "The text must read exactly as told; its look and all other text must stay.",
    "background_change": "The background must change and the foreground must stay.",
    "style_change": "The style of the whole picture must change and its content must stay.",
    "tone_transfer": "Light, weather, season or tone must change everywhere and the content stay.",
    "attribute_modification": "Only the named attribute of the named object may change.",
}
"""What counts in each of GEditBench's categories, and in the one of OmniEdit that is none of them.
"""

_SAME_EDITS: Mapping[str, str] = {
    "addition": "subject_add",
    "removal": "subject_remove",
    "swap": "subject_replace",
    "object_swap": "subject_replace",
    "background": "background_change",
    "background_swap": "background_change",
    "style": "style_change",
    "grayscale": "style_change",
    "inverted": "style_change",
    "sunset": "style_change",
    "night": "style_change",
    "corner_add": "subject_add",
    "beside_add": "subject_add",
    "env": "tone_transfer",
    "environment": "tone_transfer",
}
"""GEditBench's category of each of OmniEdit's tasks, and of the scenes' finer ones."""

_PICTURE_HINTS: Mapping[str, str] = {
    "single_object": "The named object must be there.",
    "two_objects": "Both named objects must be there.",
    "counting": "Count the named objects; the number must be exact.",
    "colors": "The named object must have the named colour.",
    "position": "Both objects must be there and lie to each other as told.",
    "color_attribution": "Each object must have its own colour.",
}
"""What counts in each of GenEval's categories."""

_SC = """You are shown a picture and its edited version. The instruction was: "{prompt}"
{hint}
Give two marks from 0 (worst) to 10 (best):
1. how fully the instruction was carried out;
2. how well everything the instruction does not mention was left as it was.
Answer with JSON alone: {{"marks": [a, b], "reason": "one short sentence"}}"""

_SC_OF_SEVERAL = """You are shown {count} pictures and, as the last one, what was made of them. \
The first picture was to be changed; the instruction may take things from the others, which it may \
call by their number. The instruction was: "{prompt}"
{hint}
Give two marks from 0 (worst) to 10 (best):
1. how fully the instruction was carried out, with the right things from the right pictures;
2. how well all of the first picture that the instruction does not mention was left as it was.
Answer with JSON alone: {{"marks": [a, b], "reason": "one short sentence"}}"""

_PQ = """You are shown one picture. Judge only how it looks, not what it shows. Give two marks from
0 (worst) to 10 (best):
1. how natural it looks: light, perspective, proportions;
2. how free it is of flaws: distortions, seams, blur, noise.
Answer with JSON alone: {"marks": [a, b], "reason": "one short sentence"}"""

_RIGHT = """You are shown one picture. It should show exactly this: "{prompt}"
{hint}
Say whether everything that was asked for is there; if anything is missing or wrong, it is not.
Answer with JSON alone: {{"right": true or false, "reason": "one short sentence"}}"""


@dataclass(frozen=True)
class Question:
    """One request to the judge.

    Attributes:
        kind: ``sc``, ``pq`` or ``right``.
        text: what is asked.
        pictures: PNG files, in the order they are shown.
    """

    kind: str
    text: str
    pictures: tuple[bytes, ...]


def questions_about(
    prompt: str, category: str, sources: Sequence[bytes], picture: bytes
) -> tuple[Question, ...]:
    """Return what is asked about one answer.

    Args:
        prompt: what the field was asked.
        category: of the prompt.
        sources: PNG files of the pictures of an edit, that which was to be changed first.
        picture: PNG file of the answer.
    """
    if not sources:
        return (Question("right", _filled(_RIGHT, prompt, _PICTURE_HINTS, category), (picture,)),)
    category = _SAME_EDITS.get(category, category)
    if len(sources) == 1:
        text = _filled(_SC, prompt, _EDIT_HINTS, category)
    else:
        text = _filled(_SC_OF_SEVERAL, prompt, _EDIT_HINTS, category, len(sources))
    return (Question("sc", text, (*sources, picture)), Question("pq", _PQ, (picture,)))


def _filled(text: str, prompt: str, hints: Mapping[str, str], category: str, count: int = 1) -> str:
    """Return a question with its prompt, and with its hint where the category has one."""
    filled = text.format(prompt=prompt, hint=hints.get(category, ""), count=count)
    return filled.replace("\n\n", "\n")


class UnusableAnswerError(ValueError):
    """What the model wrote gives no mark; the text says why."""


def read_answer(kind: str, text: str, *, is_cut: bool = False) -> dict[str, Any]:
    """Return what an answer says: ``{"right": bool}``, or ``{"marks": [a, b]}`` from 0 to 10.

    The last complete JSON object that holds the key decides, whatever stands around it; thinking,
    up to its closing tag, is not read. Marks may be written ``"7"``, ``"7/10"`` or
    ``"7 out of 10"``; right and wrong ``"yes"`` and ``"no"``, ``"true"`` and ``"false"``, 1 and 0.

    Args:
        kind: of the question.
        text: what the model wrote.
        is_cut: whether it was cut off; then the object must stand at its beginning, since a
            later one may be a draft of an answer that never came.

    Raises:
        UnusableAnswerError: it holds no usable answer.
    """
    if len(text) > _LONGEST_ANSWER:
        raise UnusableAnswerError(f"it has {len(text):,} characters")
    spoken = _without_thinking(text)
    key = "right" if kind == "right" else "marks"
    found = _objects(spoken, key, only_first=is_cut)
    if not found:
        cut = ", is cut off" if is_cut else ""
        raise UnusableAnswerError(f"it holds no JSON object with {key!r}{cut}")
    if key == "right":
        return {key: _right(found[-1][key])}
    marks = found[-1][key]
    if not isinstance(marks, list) or len(marks) != 2:
        raise UnusableAnswerError("'marks' should be two numbers")
    return {key: [_mark(mark) for mark in marks]}


def mark_of(answer: Mapping[str, Any]) -> float:
    """Return the mark of an answer: the lower of its two, or 0 and 1 for wrong and right."""
    return float(answer["right"]) if "right" in answer else float(min(answer["marks"]))


def _without_thinking(text: str) -> str:
    """Return what is said after the last thinking, none of one that has no end."""
    begins = 0
    for closing in _THINKING_ENDS.finditer(text):
        begins = closing.end()
    return _THINKING_BEGINS.split(text[begins:], maxsplit=1)[0]


def _objects(text: str, key: str, *, only_first: bool) -> list[dict[str, Any]]:
    """Return the complete JSON objects that hold a key, as they end.

    Args:
        text: words and JSON.
        key: what they hold.
        only_first: read the object that the text begins with, perhaps as a code block, alone.
    """
    found: list[dict[str, Any]] = []

    def keep(item: dict[str, Any]) -> dict[str, Any]:
        if key in item:
            found.append(item)
        return item

    decoder = json.JSONDecoder(object_hook=keep)
    place = text.find("{")
    if only_first and not _BEGINS_WITH_OBJECT.match(text):
        return []
    while place >= 0:
        try:
            _, end = decoder.raw_decode(text, place)
        except (ValueError, RecursionError):
            if only_first:
                return []
            end = place + 1
        if only_first:
            return found
        place = text.find("{", end)
    return found


def _right(value: Any) -> bool:
    if isinstance(value, str):
        value = _WORDS.get(value.strip().lower())
    if isinstance(value, bool | int | float) and value in (0, 1):
        return bool(value)
    raise UnusableAnswerError("'right' should be true or false")


def _mark(value: Any) -> float:
    if isinstance(value, str) and (written := _WRITTEN_MARK.fullmatch(value)):
        value = float(written[1])
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not 0 <= value <= BEST_MARK:
        raise UnusableAnswerError("marks should be numbers from 0 to 10")
    return float(value)


def overall(marks: Mapping[str, float]) -> float:
    """Return the score of one answer from the marks of its questions."""
    if "right" in marks:
        return marks["right"]
    return math.sqrt(marks["sc"] * marks["pq"])
