"""A vision model behind an OpenAI-compatible endpoint: requests, retries, costs, kept answers."""

import contextlib
import hashlib
import json
import logging
import math
import random
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from danceflow.errors import JudgeError
from danceflow.evaluate.judge.completion import Completion, read_completion
from danceflow.evaluate.judge.questions import Question, UnusableAnswerError, mark_of, read_answer
from danceflow.evaluate.judge.secret import Secret
from danceflow.ops.files import write_json
from danceflow.pictures import data_uri

if TYPE_CHECKING:
    import httpx

    from danceflow.params.sections import JudgeParams

_LOG = logging.getLogger(__name__)
_MAX_TOKENS = 400
_MORE_TOKENS = 4
"""How many times as many tokens an answer may have when it is asked for again."""
_MAX_ASKED_AGAIN = 2
"""How often, at most, an unusable answer is asked for again."""
_LONGEST_WAIT_S = 60.0
_LONGEST_BODY = 1_000_000
_ABOUT_KEY = frozenset({401, 403})
_ABOUT_QUESTION = frozenset({400, 403, 413, 415, 422, 451})
"""Status codes that refuse this question, a content filter's among them, and not every one."""
_PASSING = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})
"""Status codes after which the same request may succeed."""
_INTERNAL_ERROR = 500
"""One that stays is about the question: an endpoint that is down or busy has codes of its own."""


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
        """Return the cost at prices per million tokens."""
        return (self.tokens_in * price_in + self.tokens_out * price_out) / 1e6


@dataclass(frozen=True)
class Unusable:
    """A question that got no usable answer.

    Attributes:
        reason: why, and the beginning of what was said; without the endpoint's key.
    """

    reason: str


@dataclass(frozen=True)
class _Reply:
    """A response; its ``repr`` does not show what the endpoint wrote.

    Attributes:
        status: its code.
        pause: seconds that the endpoint asks to wait, None where it does not.
        body: no more than its first megabyte.
    """

    status: int
    pause: float | None
    body: bytes = field(repr=False)


class _RefusedError(Exception):
    """The endpoint does not take this question."""


class _PassingError(Exception):
    """The same request may succeed later.

    Attributes:
        pause: seconds that the endpoint asks to wait, None where it does not.
        status: its code, None where it cannot be reached.
    """

    def __init__(self, text: str, pause: float | None = None, status: int | None = None) -> None:
        super().__init__(text)
        self.pause, self.status = pause, status


class Endpoint:
    """Asks questions; every usable answer is kept in a folder and never asked for again."""

    def __init__(
        self,
        config: "JudgeParams",
        answers: Path,
        wait: Callable[[float], None] = time.sleep,
    ) -> None:
        """Take the settings; nothing is sent yet.

        Args:
            config: where to ask, and how often to try.
            answers: the folder of the kept answers.
            wait: how to pass some seconds.

        Raises:
            UsageError: the variable that should hold the key does not, or holds no key.
        """
        self.config, self.answers, self.wait = config, answers, wait
        self.usage = Usage()
        self._unusable: dict[str, Unusable] = {}
        self._secret = Secret(None)
        if config.key_variable is not None and not config.offline:
            self._secret = Secret.read(config.key_variable, "evaluate.judge.key_variable")

    @contextlib.contextmanager
    def client(self) -> Iterator["httpx.Client"]:
        """Give a client to ask with; within the block its library's logs do not show the key.

        Raises:
            JudgeError: the surroundings name a proxy or certificates that cannot be used.
        """
        import httpx

        try:
            client = httpx.Client()
        except (OSError, ValueError, ImportError, httpx.InvalidURL) as error:
            # The error's own text may hold a proxy's password.
            raise JudgeError(
                "evaluate.judge: the proxy or the certificates that the environment names "
                "(HTTP_PROXY, HTTPS_PROXY, ALL_PROXY, SSL_CERT_FILE, SSL_CERT_DIR) cannot be used "
                f"({type(error).__name__})"
            ) from None
        with client, self._secret.kept_from_logs("httpx", "httpcore"):
            yield client

    def key(self, question: Question) -> str:
        """Return the name of a question's answer: a digest of model, text and pictures."""
        digest = hashlib.sha256(f"{self.config.model}\0{question.kind}\0{question.text}".encode())
        for picture in question.pictures:
            digest.update(hashlib.sha256(picture).digest())
        return digest.hexdigest()[:32]

    def known(self, question: Question) -> float | Unusable | None:
        """Return the mark of a kept answer, None where there is none.

        Raises:
            JudgeError: the file of the answer is damaged.
        """
        path = self.answers / f"{self.key(question)}.json"
        try:
            text = json.loads(path.read_text(encoding="utf-8"))["text"]
            if not isinstance(text, str):
                raise TypeError("'text' should be a string")
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise JudgeError(f"{path}: this kept answer is damaged ({error}); remove it") from error
        try:
            mark = mark_of(read_answer(question.kind, text))
        except UnusableAnswerError as error:
            return Unusable(f"{path}: {error}: {self._secret.excerpt(text)!r}")
        with self.usage.lock:
            self.usage.num_kept += 1
        return mark

    def ask(self, question: Question, client: "httpx.Client") -> float | Unusable:
        """Return the mark of a question, asking the model if it is not known.

        What may pass is tried again ``num_retries`` times. An unusable answer is asked for again,
        with a reminder and room for more words, twice and at most ``num_retries`` times. A
        question without a usable answer is not asked again as long as this endpoint lives.

        Args:
            question: what to ask.
            client: of ``client()``.

        Raises:
            JudgeError: the endpoint cannot be reached or takes no question at all.
        """
        if (known := self.known(question)) is not None:
            return known
        key = self.key(question)
        if (unusable := self._unusable.get(key)) is not None:
            return unusable
        try:
            answer, said = self._usable(question, client)
        except (_RefusedError, UnusableAnswerError) as error:
            return self._unusable.setdefault(key, Unusable(str(error)))
        content = {
            "model": self.config.model,
            "question": question.text,
            "text": json.dumps(answer),
            "said": self._secret.hidden(said).encode(errors="replace").decode(),
        }
        write_json(self.answers / f"{key}.json", content)
        return mark_of(answer)

    def _usable(self, question: Question, client: "httpx.Client") -> tuple[dict[str, Any], str]:
        """Return a usable answer, and what was said.

        Raises:
            JudgeError: as ``ask``.
            UnusableAnswerError: there is none.
            _RefusedError: the endpoint does not take this question.
        """
        failures = asked_again = 0
        num_retries = self.config.num_retries
        while True:
            pause = None
            try:
                found = self._try(question, client, asked_again)
                return self._read(question, found), found.text
            except _PassingError as error:
                failures += 1
                trouble, pause = str(error), error.pause
                if failures > num_retries:
                    trouble += _times("tried", failures)
                    if error.status == _INTERNAL_ERROR:
                        raise _RefusedError(trouble) from None
                    raise JudgeError(
                        f"{self.config.url}: {trouble}; answers so far are kept, the same command "
                        "goes on"
                    ) from None
            except UnusableAnswerError as error:
                asked_again += 1
                trouble = str(error)
                if asked_again > min(_MAX_ASKED_AGAIN, num_retries):
                    raise UnusableAnswerError(trouble + _times("asked", asked_again)) from None
            times = failures + asked_again
            _LOG.warning("the judge is asked again (%d): %s", times, trouble)
            usual = min(_LONGEST_WAIT_S, 2.0 ** (times - 1)) * (0.5 + random.random() / 2)
            self.wait(usual if pause is None else pause)

    def _read(self, question: Question, found: Completion) -> dict[str, Any]:
        if found.trouble:
            raise UnusableAnswerError(self._secret.excerpt(found.trouble))
        try:
            return read_answer(question.kind, found.text, is_cut=found.is_cut)
        except UnusableAnswerError as error:
            said = self._secret.excerpt(found.text)
            raise UnusableAnswerError(f"its answer cannot be used, {error}: {said!r}") from None

    def _try(self, question: Question, client: "httpx.Client", asked_again: int) -> Completion:
        """Return what the endpoint answers to one request.

        Raises:
            JudgeError: it takes no question.
            _PassingError: it may take it later.
            _RefusedError: it does not take this one.
        """
        reply = self._send(self.request(question, asked_again), client)
        status = reply.status
        if 200 <= status < 300:
            found = read_completion(reply.body)
            with self.usage.lock:
                self.usage.num_requests += 1
                self.usage.tokens_in += found.tokens_in
                self.usage.tokens_out += found.tokens_out
            return found
        about = ""
        if status in _ABOUT_KEY and self.config.key_variable is not None:
            about = f" to the key in {self.config.key_variable}"
        words = self._secret.excerpt(reply.body.decode(errors="replace"))
        trouble = f"answers {status}{about}: {words}"
        if status in _PASSING:
            raise _PassingError(trouble, reply.pause, status)
        if status in _ABOUT_QUESTION:
            raise _RefusedError(trouble)
        if 300 <= status < 400:
            trouble = f"answers {status}, a redirect; write the address that it leads to"
        raise JudgeError(f"{self.config.url}: {trouble}")

    def _send(self, request: dict[str, Any], client: "httpx.Client") -> _Reply:
        """Return what comes back.

        Raises:
            _PassingError: the endpoint cannot be reached.
        """
        import httpx

        try:
            with client.stream(
                "POST",
                f"{self.config.url.rstrip('/')}/chat/completions",
                json=request,
                headers=self._secret.header(),
                timeout=self.config.timeout_s,
            ) as response:
                pause = _retry_after(response.headers.get("Retry-After"))
                return _Reply(response.status_code, pause, _beginning(response))
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            # The cause is not chained: it would be shown with what the endpoint sent.
            reason = self._secret.excerpt(str(error)) or type(error).__name__
            raise _PassingError(f"cannot be reached: {reason}") from None

    def request(self, question: Question, asked_again: int = 0) -> dict[str, Any]:
        """Return the body of the request that asks a question.

        Args:
            question: what is asked.
            asked_again: how often it was asked before; the same request would get the same answer.
        """
        text = question.text
        if asked_again:
            text += (
                f"\n(Attempt {asked_again + 1}: the answer before this one could not be read. "
                "Write that JSON object and nothing else.)"
            )
        content: list[dict[str, Any]] = [{"type": "text", "text": text}]
        content += [
            {"type": "image_url", "image_url": {"url": data_uri(picture)}}
            for picture in question.pictures
        ]
        return {
            "model": self.config.model,
            "messages": [{"role": "user", "content": content}],
            "temperature": 0,
            "max_tokens": _MAX_TOKENS * _MORE_TOKENS**asked_again,
        }


def _beginning(response: "httpx.Response") -> bytes:
    """Return the body of a response, of an endless one its first megabyte."""
    body = b""
    for chunk in response.iter_bytes():
        body += chunk
        if len(body) > _LONGEST_BODY:
            return body[:_LONGEST_BODY]
    return body


def _times(done: str, count: int) -> str:
    return f" ({done} {count} times)" if count > 1 else ""


def _retry_after(header: str | None) -> float | None:
    """Return the seconds that an endpoint asks to wait, if it says so in seconds."""
    try:
        seconds = float(header or "")
    except ValueError:
        return None
    return None if math.isnan(seconds) else min(_LONGEST_WAIT_S, max(0.0, seconds))
