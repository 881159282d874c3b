"""Two processes, of which the second fails while the first waits: ``python -m failing``."""

from repository import ROOT

from danceflow.errors import ConfigError
from danceflow.ops import group
from danceflow.params.read import load_params

if __name__ == "__main__":
    with group.joined(load_params(ROOT / "params.yaml").run):
        if group.current().rank == 1:
            raise ConfigError("distill: its parts do not fit")
        group.current().wait()
