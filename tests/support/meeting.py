"""Two processes that meet: ``python -m meeting FOLDER WORD``, where the word says who fails.

``python -m meeting`` with a third word starts them, as one of the machines.
"""

import sys
from pathlib import Path

from repository import ROOT

from danceflow.errors import ConfigError
from danceflow.ops import group
from danceflow.ops.launch import launch
from danceflow.params.read import load_params
from danceflow.params.sections import RunParams


def run_params() -> RunParams:
    found = load_params(ROOT / "params.yaml").run
    return found.model_copy(update={"num_processes": 2, "num_threads": 1})


def meet(folder: Path, word: str) -> None:
    with group.joined(run_params()):
        mine = group.current()
        if word == "fails" and mine.rank == 1:
            raise ConfigError("distill: its parts do not fit")
        (folder / f"{mine.rank}.txt").write_text(f"{mine.all(mine.rank)} {mine.told(mine.rank)}")


if __name__ == "__main__":
    if len(sys.argv) == 4:
        launch(run_params(), "meeting", sys.argv[1:3], "a stage")
    else:
        meet(Path(sys.argv[1]), sys.argv[2])
