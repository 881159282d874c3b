"""The command line called in this process."""

import sys
from collections.abc import Callable

import pytest

from danceflow import cli

Danceflow = Callable[..., tuple[int, str, str]]


def in_this_process(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Danceflow:
    """Return what calls ``danceflow``: exit code, standard output, standard error."""

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["danceflow", *arguments])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        out, err = capsys.readouterr()
        return int(caught.value.code or 0), out, err

    return call
