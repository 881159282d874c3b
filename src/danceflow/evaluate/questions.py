"""What a vision model is asked about a picture, and how its answers become scores.

Edits follow VIEScore (Ku et al. 2023): semantic consistency SC and perceptual quality PQ, each the
lower of two marks from 0 to 10, and O = sqrt(SC * PQ). Pictures made from a prompt follow GenEval
(Ghosh et al. 2023): right only if everything that was asked for is there.
"""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

BEST_MARK = 10.0

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
    "env": "tone_transfer",
    "environment": "tone_transfer",
}
"""GEditBench's category of each of OmniEdit's tasks."""

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
    prompt: str, category: str, source: bytes | None, picture: bytes
) -> tuple[Question, ...]:
    """Returns what is asked about one answer.

    Args:
        prompt: what the field was asked.
        category: of the prompt.
        source: PNG file of the picture that was edited, or None.
        picture: PNG file of the answer.
    """
    if source is None:
        return (Question("right", _filled(_RIGHT, prompt, _PICTURE_HINTS, category), (picture,)),)
    text = _filled(_SC, prompt, _EDIT_HINTS, _SAME_EDITS.get(category, category))
    return (Question("sc", text, (source, picture)), Question("pq", _PQ, (picture,)))


def _filled(text: str, prompt: str, hints: Mapping[str, str], category: str) -> str:
    """Returns a question with its prompt, and with its hint where the category has one."""
    return text.format(prompt=prompt, hint=hints.get(category, "")).replace("\n\n", "\n")


def read_answer(kind: str, text: str) -> float:
    """Returns the mark of an answer: 0 to 10, or 0 and 1 for ``right``.

    Args:
        kind: of the question.
        text: what the model wrote; JSON, perhaps with words around it.

    Raises:
        ValueError: it holds no usable answer.
    """
    found = re.search(r"\{.*\}", text, re.DOTALL)
    if found is None:
        raise ValueError("it holds no JSON object")
    content = json.loads(found[0])
    if kind == "right":
        right = content.get("right")
        if not isinstance(right, bool):
            raise ValueError(f"'right' should be true or false, found {right!r}")
        return float(right)
    marks = content.get("marks")
    if not isinstance(marks, list) or len(marks) != 2:
        raise ValueError(f"'marks' should be two numbers, found {marks!r}")
    for mark in marks:
        is_number = isinstance(mark, int | float) and not isinstance(mark, bool)
        if not is_number or not 0 <= mark <= BEST_MARK:
            raise ValueError(f"marks go from 0 to 10, found {mark!r}")
    return float(min(marks))


def overall(marks: Mapping[str, float]) -> float:
    """Returns the score of one answer from the marks of its questions."""
    if "right" in marks:
        return marks["right"]
    return math.sqrt(marks["sc"] * marks["pq"])
