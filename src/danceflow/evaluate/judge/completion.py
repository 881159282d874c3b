"""What a chat completion says, whatever an endpoint sends in its place."""

import json
from dataclasses import dataclass
from typing import Any

_CUT = frozenset({"length", "max_tokens", "content_filter"})
"""Reasons to finish after which what was said may not be all."""
_THINKING = frozenset({"reasoning", "thinking", "redacted_thinking"})
"""Parts of a content that are not the answer."""
_MOST_TOKENS = 1_000_000_000
"""What no single answer takes; a larger count is not believed."""


@dataclass(frozen=True)
class Completion:
    """One answer of an endpoint.

    Attributes:
        text: what was said, empty where ``trouble`` tells why there is nothing.
        is_cut: whether it ends before its end.
        trouble: why nothing was said, with the endpoint's own words; empty where something was.
        tokens_in: of the request, 0 where the endpoint does not tell.
        tokens_out: of the answer.
    """

    text: str = ""
    is_cut: bool = False
    trouble: str = ""
    tokens_in: int = 0
    tokens_out: int = 0


def read_completion(body: bytes) -> Completion:
    """Return what an answer of any form says; it raises nothing.

    The text is the message's content: a string, the text parts of a list (thinking is skipped), or
    an object as JSON. Without content the arguments of the message's tool calls stand for it.

    Args:
        body: of a response that reports success.
    """
    text = body.decode("utf-8-sig", errors="replace")
    try:
        return _read(json.loads(text), text)
    except (ValueError, RecursionError):
        return Completion(trouble=f"its answer is no JSON: {text}")


def _read(content: Any, body: str) -> Completion:
    usage = _dict(_dict(content).get("usage"))
    tokens = _count(usage.get("prompt_tokens")), _count(usage.get("completion_tokens"))
    choices = _dict(content).get("choices")
    choice = _dict(choices[0]) if isinstance(choices, list) and choices else {}
    if not isinstance(message := choice.get("message"), dict):
        return Completion("", False, f"its answer is no chat completion: {body}", *tokens)
    reason = str(choice.get("finish_reason")).lower()
    text = _text(message.get("content"))
    if not text.strip():
        text = _arguments(message)
    if text.strip():
        return Completion(text, reason in _CUT, "", *tokens)
    if refusal := _refusal(message):
        trouble = f"it refuses: {refusal}"
    elif reason in _CUT:
        trouble = f"it says nothing and stops ({reason})"
    else:
        trouble = "it says nothing"
    return Completion("", reason in _CUT, trouble, *tokens)


def _text(content: Any) -> str:
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        return "".join(_part(part) for part in content)
    return _part(content) or json.dumps(content) if isinstance(content, dict) else ""


def _part(part: Any) -> str:
    if isinstance(part, str):
        return part
    text = _dict(part).get("text")
    is_thinking = str(_dict(part).get("type")) in _THINKING
    return text if isinstance(text, str) and not is_thinking else ""


def _arguments(message: dict[str, Any]) -> str:
    """Return the arguments of a message's tool calls, one a line."""
    calls = message.get("tool_calls")
    functions = [_dict(call).get("function") for call in calls] if isinstance(calls, list) else []
    functions.append(message.get("function_call"))
    found = [_dict(function).get("arguments") for function in functions]
    return "\n".join(item if isinstance(item, str) else json.dumps(item) for item in found if item)


def _refusal(message: dict[str, Any]) -> str:
    content = message.get("content")
    parts = content if isinstance(content, list) else []
    found = [message.get("refusal"), *(_dict(part).get("refusal") for part in parts)]
    return " ".join(item for item in found if isinstance(item, str))


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _count(value: Any) -> int:
    is_count = isinstance(value, int) and not isinstance(value, bool)
    return int(value) if is_count and 0 <= value <= _MOST_TOKENS else 0
