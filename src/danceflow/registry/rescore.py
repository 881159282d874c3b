"""A student of any source, scored by this checkout's evaluation; the checkout stays as it is."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from danceflow.errors import UsageError, unknown_name
from danceflow.evaluate.records import TEACHER
from danceflow.ops import determinism
from danceflow.ops.tracking import TrackingSettings
from danceflow.params.read import load_params
from danceflow.paths import Paths
from danceflow.registry.open import package_of
from danceflow.report.evidence import Evidence, Scored

if TYPE_CHECKING:
    from danceflow.models.package import Package
    from danceflow.params.sections import Params


def rescore(root: Path, source: str, capabilities: Collection[str] = ()) -> Evidence:
    """Return what a student scores by the checkout's evaluation.

    Args:
        root: the checkout, in which the data are prepared.
        source: a folder; ``champion`` or ``challenger``; ``runs:/<run id>``;
            ``models:/<name>@<alias>`` or ``models:/<name>/<version>``.
        capabilities: which; empty: all.

    Raises:
        UsageError: there is no such capability, or tracking is off.
        WeightsError: the student is missing or damaged, or makes no images of the data's size.
        DataError: the data are not prepared.
        TrackingError: the store cannot be reached or knows no such model.
    """
    paths = Paths(root)
    params = load_params(paths.params)
    for name in capabilities:
        if name not in params.capabilities:
            raise UsageError(unknown_name("capability", name, params.capabilities))
    names = [name for name in params.capabilities if not capabilities or name in capabilities]
    determinism.prepare(params.run)
    with package_of(source, TrackingSettings.of(root, params.tracking)) as package:
        # What it is compared by is known before anything heavy is loaded.
        from danceflow.evaluate.again import open_again
        from danceflow.evaluate.identity import identity_of

        identities = {name: identity_of(params, paths, name) for name in names}
        student = open_again(params, package)
        return Evidence(
            capabilities={
                name: _scored(params, paths, name, package, student, identity)
                for name, identity in identities.items()
            }
        )


def _scored(
    params: "Params",
    paths: Paths,
    name: str,
    place: Path,
    student: "Package",
    identity: Mapping[str, Any],
) -> Scored:
    from danceflow.evaluate.again import score_again

    found = score_again(params, paths, name, place, student)
    return Scored(
        identity=identity,
        scale=found.scale,
        teacher=TEACHER + params.capabilities[name].teacher,
        rows=tuple((row.category, row.uid, row.seed, row.score, None) for row in found.rows),
    )
