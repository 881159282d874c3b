"""Several commands in one process: importing the networks for each would take minutes."""

import json
import sys
from collections.abc import Sequence

SCRIPT = """
import json, sys
from danceflow import cli

for arguments in json.loads(sys.argv[1]):
    sys.argv = ["danceflow", *arguments]
    print("$", *sys.argv, flush=True)
    try:
        cli.main()
    except SystemExit as end:
        if end.code:
            raise
"""


def one_process(calls: Sequence[Sequence[str]]) -> tuple[str, ...]:
    """Return a command that does what ``danceflow`` does with each of these arguments."""
    return sys.executable, "-c", SCRIPT, json.dumps([list(call) for call in calls])
