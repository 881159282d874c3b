"""A key from the environment: it is sent, and shown nowhere."""

import contextlib
import html
import itertools
import json
import logging
import os
from collections.abc import Iterator
from urllib.parse import quote

from danceflow.errors import UsageError

_SHORTEST_PART = 4
"""Characters of a key in a row that count as a part of it; what is shorter tells nothing."""
_MARK = "***"
_LONGEST_EXCERPT, _LONGEST_READ = 200, 10_000


class Secret:
    """A key, perhaps none; only ``header`` gives it away, ``str`` and ``repr`` do not."""

    __slots__ = ("_parts", "_value")

    def __init__(self, value: str | None) -> None:
        """Take the key, or None where there is none."""
        self._value = value
        self._parts: frozenset[str] = frozenset()
        if value:
            quoted = (json.dumps(value)[1:-1], repr(value)[1:-1], html.escape(value))
            forms = {
                value,
                quote(value, safe="", errors="replace"),
                *quoted,
            }  # as an endpoint may repeat it
            size = self._size
            self._parts = frozenset(
                form[place : place + size]
                for form in forms
                for place in range(len(form) - size + 1)
            )

    @staticmethod
    def read(variable: str, parameter: str) -> "Secret":
        """Return the key in an environment variable, without the white space around it.

        Args:
            variable: its name.
            parameter: which parameter names it, for messages.

        Raises:
            UsageError: the variable is not set or holds what no key can; the value is not told.
        """
        secret = Secret(os.environ.get(variable, "").strip())  # no local variable: tools show them
        if secret.is_empty:
            raise UsageError(f"{parameter}: {variable} is not set in the environment, or is empty")
        if found := secret.unfit():
            raise UsageError(
                f"{parameter}: the key in {variable} holds {found}; write the key alone, visible "
                "ASCII characters without spaces (its value is not shown)"
            )
        return secret

    @property
    def is_empty(self) -> bool:
        """Whether there is no key."""
        return not self._value

    def unfit(self) -> str:
        """Return what the key holds that no key does, in words; empty where it may be one."""
        value = self._value or ""
        if any(letter in "\r\n" for letter in value):
            return "a line break"
        if any(letter.isspace() for letter in value):
            return "a space"
        if not value.isascii():
            return "a character that is not ASCII"
        return "" if value.isprintable() else "a control character"

    def header(self) -> dict[str, str]:
        """Return the header that carries the key; none without a key."""
        return {} if self.is_empty else {"Authorization": f"Bearer {self._value}"}

    def hidden(self, text: str) -> str:
        """Return a text in which every part of the key is replaced by asterisks."""
        if not self._parts:
            return text
        size = self._size
        covered = bytearray(len(text))
        for place in range(len(text) - size + 1):
            if text[place : place + size] in self._parts:
                covered[place : place + size] = b"\1" * size
        pairs = itertools.groupby(zip(text, covered, strict=True), key=lambda pair: pair[1])
        return "".join(
            _MARK if is_covered else "".join(letter for letter, _ in group)
            for is_covered, group in pairs
        )

    def excerpt(self, text: str) -> str:
        """Return the beginning of what somebody else wrote, on one line and without the key."""
        hidden = self.hidden(text[:_LONGEST_READ])
        plain = "".join(letter if letter.isprintable() else " " for letter in hidden)
        words = " ".join(plain.split())
        is_long = len(words) > _LONGEST_EXCERPT
        return words[:_LONGEST_EXCERPT] + "..." if is_long else words

    @contextlib.contextmanager
    def kept_from_logs(self, *libraries: str) -> Iterator[None]:
        """Hide the key in the log records of libraries, imported already, within the block."""
        names = [
            name
            for name in list(logging.root.manager.loggerDict)
            if name.partition(".")[0] in libraries
        ]
        loggers = [logging.getLogger(name) for name in names]

        def hide(record: logging.LogRecord) -> bool:
            record.msg, record.args = self.hidden(record.getMessage()), ()
            return True

        for logger in loggers:
            logger.addFilter(hide)
        try:
            yield
        finally:
            for logger in loggers:
                logger.removeFilter(hide)

    @property
    def _size(self) -> int:
        return min(_SHORTEST_PART, len(self._value or ""))

    def __repr__(self) -> str:
        """Return what may be shown."""
        return f"Secret({'' if self.is_empty else _MARK})"
