import json
import shutil

from danceflow.ops.tracking import TrackingSettings, open_store, start_run
from danceflow.params.read import load_params
from danceflow.paths import Paths
from danceflow.registry.evidence import stored
from danceflow.registry.promotion import CHAMPION
from danceflow.registry.register import register_student
from danceflow.report.evidence import read_evidence
from flows.promote import consider, read_summary


def test_a_champion_is_evaluated_again_by_the_student_s_evaluation(
    reported, tmp_path, mlflow_template
):
    """The same weights, stored with the scores of one step, get the student's own scores."""
    paths = Paths(tmp_path / "project")
    shutil.copytree(reported[1].root, paths.root)
    text = paths.params.read_text().replace("enabled: false", "enabled: true")
    paths.params.write_text(text)
    shutil.copyfile(mlflow_template, paths.root / "mlflow.db")
    params = load_params(paths.params)
    settings = TrackingSettings.of(paths.root, params.tracking)
    store = open_store(settings)
    name = "global_edit"
    summary = {"capabilities": {name: read_summary(paths.summary)["capabilities"][name]}}
    evidence = read_evidence(paths, [name], summary)
    scored = evidence.capabilities[name]
    poor = scored.model_copy(
        update={
            "identity": {**scored.identity, "num_steps": 1},
            "rows": tuple((*row[:3], 0.1, row[4]) for row in scored.rows),
        }
    )

    def enter(found, note: str) -> int:
        manifest = paths.student / "manifest.json"
        manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "note": note}))
        with start_run(
            settings, tmp_path / f"{note}.json", name="n", key=note, params={}
        ) as tracker:
            run_id = str(tracker.run_id)
        made = register_student(
            store, lambda: run_id, paths.student, settings.registered_model, found
        )
        return int(made.version.version)

    champion = enter(evidence.model_copy(update={"capabilities": {name: poor}}), "one step")
    store.client.set_registered_model_alias(settings.registered_model, CHAMPION, str(champion))
    standing = consider(paths.root, params, enter(evidence, "as asked"))
    check = standing.verdict.checks[-1]
    assert (check.kind, check.decision) == ("regression", "pass")
    assert standing.verdict.against == "version 1"
    version = store.client.get_model_version(settings.registered_model, str(champion))
    first, again = stored(store, version)
    assert first.capabilities[name] == poor
    assert [row[:4] for row in again.capabilities[name].rows] == [row[:4] for row in scored.rows]
