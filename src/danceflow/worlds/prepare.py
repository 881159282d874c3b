"""Stage ``prepare``: the world writes its rows, split and in buckets, and says what they hold."""

import logging
from typing import TYPE_CHECKING

from danceflow.ops.files import write_json
from danceflow.worlds.world import open_world

if TYPE_CHECKING:
    from danceflow.params.sections import Params
    from danceflow.paths import Paths

_LOG = logging.getLogger(__name__)


def run(params: "Params", paths: "Paths") -> None:
    """Write ``data/buckets`` and ``reports/data.json``.

    Raises:
        DataError: what was brought cannot be used, or rows stand in two splits.
    """
    data = params.data
    report = {"world": data.world, "source": data.source, "seed": data.seed}
    report |= open_world(data.world).write(data, paths)
    write_json(paths.data_report, report)
    _LOG.info("wrote %s", paths.buckets)
