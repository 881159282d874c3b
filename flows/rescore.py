"""A registered student evaluated again by a checkout, in a process of its own.

Torch's threads, seeds and algorithms are set for a whole process, and a checkout's own code is
loaded once per process: so the flow does not evaluate, it starts who does.
"""

import logging
import subprocess
import sys
import tempfile
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from danceflow.errors import StageError
from danceflow.evaluate.identity import identity_of
from danceflow.params.sections import Params
from danceflow.paths import Paths
from danceflow.report.evidence import Evidence, Scored
from flows.processes import ProcessGroups

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class CheckoutEvaluation:
    """What a checkout's evaluation is, and what it makes of a student.

    Attributes:
        root: the checkout or worktree, in which the data are prepared.
        params: its parameters.
    """

    root: Path
    params: Params

    def identities(self) -> Mapping[str, Mapping[str, Any]]:
        """Return the identity of the evaluation of every capability.

        Raises:
            DataError: the data are not prepared.
        """
        paths = Paths(self.root)
        return {name: identity_of(self.params, paths, name) for name in self.params.capabilities}

    def evaluate(self, package: Path, capabilities: Collection[str]) -> Mapping[str, Scored]:
        """Return what a student scores.

        Args:
            package: folder of the student.
            capabilities: which.

        Raises:
            StageError: it cannot be evaluated; the message says why.
        """
        with tempfile.TemporaryDirectory(prefix="danceflow-scored-") as folder:
            out = Path(folder) / "scored.json"
            named = [part for name in capabilities for part in ("--capability", name)]
            command = [sys.executable, "-m", "danceflow.cli", "evaluate", "--from", str(package)]
            self._run([*command, "--out", str(out), *named])
            return Evidence.read(out.read_bytes(), str(out)).capabilities

    def _run(self, command: list[str]) -> None:
        with (
            ProcessGroups() as processes,
            subprocess.Popen(
                command,
                cwd=self.root,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            ) as process,
            processes.holding(process),
        ):
            output = process.communicate()[0].decode(errors="replace")
        lines = [line.rpartition("\r")[2].strip() for line in output.splitlines() if line.strip()]
        for line in lines:
            _LOG.debug("evaluate: %s", line)
        if process.returncode != 0:
            said = lines[-1] if lines else f"exit code {process.returncode}"
            raise StageError(f"the evaluation failed: {said.removeprefix('error: ')}")
