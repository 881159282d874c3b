"""A vision model behind an OpenAI-compatible endpoint: requests, retries, costs, kept answers."""

import hashlib
import json
import logging
import os
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from danceflow.errors import JudgeError, UsageError
from danceflow.evaluate.questions import Question, read_answer
from danceflow.ops.files import write_json
from danceflow.pictures import data_uri

if TYPE_CHECKING:
    import httpx

    from danceflow.schema import JudgeParams

_LOG = logging.getLogger(__name__)
_MAX_TOKENS = 400
_LONGEST_WAIT_S = 60.0
_PASSING = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})
"""Status codes after which the same request may succeed."""


@dataclass
class Usage:
    """What the questions cost.

    Attributes:
        num_requests: requests that were answered, unusable answers included.
        num_kept: answers that were known already.
        tokens_in: of the requests.
        tokens_out: of the answers.
    """

    num_requests: int = 0
    num_kept: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def cost(self, price_in: float, price_out: float) -> float:
        """Returns the cost at prices per million tokens."""
        return (self.tokens_in * price_in + self.tokens_out * price_out) / 1e6


class Endpoint:
    """Asks questions; every usable answer is kept in a folder and never asked for again."""

    def __init__(
        self,
        config: "JudgeParams",
        answers: Path,
        wait: Callable[[float], None] = time.sleep,
    ) -> None:
        """Takes the settings; nothing is sent yet.

        Args:
            config: where to ask, and how often to try.
            answers: the folder of the kept answers.
            wait: how to pass some seconds.

        Raises:
            UsageError: the variable that should hold the key is not set.
        """
        self.config, self.answers, self.wait = config, answers, wait
        self.usage = Usage()
        headers = {}
        if config.key_variable is not None and not config.offline:
            key = os.environ.get(config.key_variable)
            if not key:
                raise UsageError(
                    f"evaluate.judge.key_variable: {config.key_variable} is not set in the "
                    "environment"
                )
            headers["Authorization"] = f"Bearer {key}"
        self.headers = headers

    def key(self, question: Question) -> str:
        """Returns the name of a question's answer: a digest of model, text and pictures."""
        digest = hashlib.sha256(f"{self.config.model}\0{question.kind}\0{question.text}".encode())
        for picture in question.pictures:
            digest.update(hashlib.sha256(picture).digest())
        return digest.hexdigest()[:32]

    def known(self, question: Question) -> float | None:
        """Returns the mark of a kept answer, None where there is none."""
        path = self.answers / f"{self.key(question)}.json"
        try:
            kept = json.loads(path.read_text(encoding="utf-8"))
            mark = read_answer(question.kind, kept["text"])
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise JudgeError(f"{path}: this kept answer is damaged ({error}); remove it") from error
        with self.usage.lock:
            self.usage.num_kept += 1
        return mark

    def ask(self, question: Question, client: "httpx.Client") -> float:
        """Returns the mark of a question, asking the model if it is not known.

        Raises:
            JudgeError: the endpoint refuses, or gives no usable answer after the last retry.
        """
        if (mark := self.known(question)) is not None:
            return mark
        trouble = ""
        for attempt in range(self.config.num_retries + 1):
            if attempt:
                _LOG.warning("the judge is asked again (%d): %s", attempt, trouble)
            text, trouble, pause = self._try(question, client, attempt)
            if text is not None:
                try:
                    mark = read_answer(question.kind, text)
                except ValueError as error:
                    trouble = f"its answer cannot be used: {error}"
                else:
                    content = {"model": self.config.model, "question": question.text, "text": text}
                    write_json(self.answers / f"{self.key(question)}.json", content)
                    return mark
            if attempt < self.config.num_retries:
                self.wait(pause)
        raise JudgeError(
            f"{self.config.url}: {trouble} (tried {self.config.num_retries + 1} times); answers so "
            "far are kept, the same command goes on"
        )

    def _try(
        self, question: Question, client: "httpx.Client", attempt: int
    ) -> tuple[str | None, str, float]:
        """Returns (text or None, what went wrong, seconds to wait before the next attempt)."""
        import httpx

        pause = min(_LONGEST_WAIT_S, 2.0**attempt) * (0.5 + random.random() / 2)
        try:
            response = client.post(
                f"{self.config.url.rstrip('/')}/chat/completions",
                json=self.request(question),
                headers=self.headers,
                timeout=self.config.timeout_s,
            )
        except httpx.HTTPError as error:
            return None, f"cannot be reached: {error or type(error).__name__}", pause
        if response.status_code != httpx.codes.OK:
            trouble = f"answers {response.status_code}: {response.text[:200]}"
            if response.status_code not in _PASSING:
                raise JudgeError(f"{self.config.url}: {trouble}")
            return None, trouble, _retry_after(response.headers.get("Retry-After"), pause)
        try:
            content = response.json()
            text = content["choices"][0]["message"]["content"]
        except (ValueError, KeyError, IndexError, TypeError) as error:
            return None, f"its answer is no chat completion ({error!r})", pause
        usage: dict[str, Any] = content.get("usage") or {}
        with self.usage.lock:
            self.usage.num_requests += 1
            self.usage.tokens_in += int(usage.get("prompt_tokens") or 0)
            self.usage.tokens_out += int(usage.get("completion_tokens") or 0)
        return str(text), "", pause

    def request(self, question: Question) -> dict[str, Any]:
        """Returns the body of the request that asks a question."""
        content: list[dict[str, Any]] = [{"type": "text", "text": question.text}]
        content += [
            {"type": "image_url", "image_url": {"url": data_uri(picture)}}
            for picture in question.pictures
        ]
        return {
            "model": self.config.model,
            "messages": [{"role": "user", "content": content}],
            "temperature": 0,
            "max_tokens": _MAX_TOKENS,
        }


def _retry_after(header: str | None, pause: float) -> float:
    """Returns the seconds that an endpoint asks to wait, if it says so in seconds."""
    try:
        return min(_LONGEST_WAIT_S, max(0.0, float(header or "")))
    except ValueError:
        return pause
