"""What decides what a student is asked and how it is scored: the identity of an evaluation.

Two students can be compared where it is the same, whatever they are. It holds nothing of the
student, and nothing that changes only what is shown, such as pictures and further metrics.
"""

from typing import TYPE_CHECKING, Any

from danceflow.errors import DataError
from danceflow.ops import keys
from danceflow.ops.files import file_digests, fingerprint

if TYPE_CHECKING:
    from danceflow.params.sections import Params
    from danceflow.paths import Paths

SPLIT = "test"


def identity_of(params: "Params", paths: "Paths", capability: str) -> dict[str, Any]:
    """Return the identity of this checkout's evaluation of a capability, by name.

    Args:
        params: all sections.
        paths: the checkout, in which the data are prepared.
        capability: its name.

    Raises:
        DataError: they are not.
    """
    config, judge = params.evaluate, params.evaluate.judge
    rows = paths.bucket(params.capabilities[capability].bucket) / SPLIT
    if not rows.is_dir():
        raise DataError(f"{rows}: no prepared rows; run the stage: dvc repro prepare")
    return {
        "rows": fingerprint(file_digests(rows)),
        "num_samples": config.num_samples,
        "seeds": list(config.seeds),
        "num_steps": config.steps(capability),
        "guidance": config.guidance,
        "judge": judge.model_dump(mode="json", include={"url", "model"})
        if judge is not None and judge.is_score
        else None,
        "world": params.data.world,
        "device": params.run.device.partition(":")[0],
        "dtype": params.run.dtype,
        "code": keys.evaluation_code(paths.root),
    }
