import base64
import contextlib
import io
import itertools
import json
import sqlite3
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from repository import ROOT
from scored import evidence_of

from danceflow.errors import TrackingError, UsageError, WeightsError
from danceflow.models.steps import recommended_steps
from danceflow.ops.tracking import Store, TrackingSettings, open_store, start_run
from danceflow.params.read import load_params
from danceflow.params.sections import GateParams
from danceflow.pictures import png_base64, png_bytes, read_base64, read_own
from danceflow.registry.evidence import EVIDENCE_TAG, current, keep, stored
from danceflow.registry.open import DIGEST_TAG, open_student
from danceflow.registry.promotion import (
    CHALLENGER,
    CHAMPION,
    GATE_TAG,
    REASONS_TAG,
    GateError,
    Promotions,
)
from danceflow.registry.register import register_student, requirements

FILES = (ROOT / "params.yaml", *ROOT.glob("recipes/**/*.yaml"))
STEPS = {json.dumps(recommended_steps(load_params(path))) for path in FILES}
NAME = "student"


POLICY = GateParams(
    confidence=0.95,
    min_score={},
    min_retention={"t2i": 0.9},
    max_regression=0.05,
    auto_promote=True,
)


@pytest.fixture
def store(tracking: TrackingSettings) -> Store:
    return open_store(tracking)


@pytest.fixture
def run_id(tracking: TrackingSettings, tmp_path: Path) -> str:
    with start_run(tracking, tmp_path / "run.json", name="n", key="k", params={}) as tracker:
        assert tracker.run_id is not None
        return tracker.run_id


@pytest.fixture
def promotions(store: Store) -> Promotions:
    return Promotions(store, NAME)


@pytest.fixture
def entered(store: Store, run_id: str):
    """Register versions without their weights, which the history does not look at."""

    counter = itertools.count(1)

    def enter(score: float, retention: float = 1.0, **asked):
        from mlflow.exceptions import MlflowException

        with contextlib.suppress(MlflowException):
            store.client.create_registered_model(NAME)
        digest = f"{next(counter):064x}"
        place = keep(store, run_id, digest, evidence_of(score, retention, **asked))
        return store.client.create_model_version(
            NAME, "/nowhere", run_id=run_id, tags={DIGEST_TAG: digest, EVIDENCE_TAG: place}
        )

    return enter


def champion(promotions: Promotions) -> int | None:
    version = promotions.holder(CHAMPION)
    return None if version is None else int(version.version)


# ------------------------------------------------------------------------ registering and opening


def test_a_registered_student_opens_from_everywhere_and_serves(
    store, tracking, run_id, student_folder, promotions, monkeypatch
):
    entry = register_student(store, lambda: run_id, student_folder, NAME, evidence_of(0.5))
    version = entry.version
    assert (entry.made, entry.judged_anew) == (True, True)
    assert current(store, version) == evidence_of(0.5)

    for score, anew in [(0.5, False), (0.6, True)]:
        again = register_student(store, lambda: run_id, student_folder, NAME, evidence_of(score))
        assert (again.version.version, again.made) == (version.version, False)
        assert again.judged_anew is anew
    (now,) = store.client.search_model_versions(f"name = '{NAME}'")
    assert current(store, now) == evidence_of(0.6)
    assert stored(store, now) == [evidence_of(0.6), evidence_of(0.5)]
    assert len(store.client.search_logged_models([store.experiment_id])) == 1

    promotions.consider(now, POLICY, auto_promote=True)
    for source in (
        "champion",
        f"models:/{NAME}@challenger",
        f"models:/{NAME}/1",
        f"runs:/{run_id}",
    ):
        (image,) = open_student(source, tracking).generate(["green"])
        assert image.getpixel((0, 0)) == (0, 128, 0)

    import mlflow

    with store.as_current():
        served = mlflow.pyfunc.load_model(f"models:/{NAME}@champion")
    check_serving(served)
    (student_folder / "weights.json").write_text('{"strength": 0.5}')
    other = register_student(store, lambda: run_id, student_folder, NAME, evidence_of(0.5))
    assert (int(other.version.version), other.made) == (2, True)


@pytest.mark.parametrize("recommended", sorted(STEPS))
def test_the_served_default_is_the_manifest_s_number_of_steps(
    store, run_id, student_folder, recommended: str
) -> None:
    """Of every params file: the number that its training writes, and that its scores go by."""
    import mlflow

    num_steps = json.loads(recommended)
    content = {"strength": 1.0, "meta": {"num_steps": num_steps}}
    (student_folder / "weights.json").write_text(json.dumps(content))
    entry = register_student(store, lambda: run_id, student_folder, NAME, evidence_of(0.5))
    with store.as_current():
        params = mlflow.models.get_model_info(entry.version.source).signature.params
    default = num_steps if isinstance(num_steps, int) else 0  # 0: as the row's kind of answer has
    assert {item.name: item.default for item in params}["steps"] == default
    assert open_student(student_folder).meta["num_steps"] == num_steps


def check_serving(served) -> None:
    """The pyfunc generates and edits, keeps its signature and refuses bad rows."""
    from mlflow.exceptions import MlflowException

    white = png_base64(png_bytes(Image.new("RGB", (8, 8), "white")))
    rows = pd.DataFrame({"prompt": ["red", "red"], "image": [None, white]})
    answer = served.predict(rows, params={"seed": 3, "steps": 2, "guidance": 1.0})
    images = [read_own(read_base64(text)) for text in answer["image"]]
    assert [image.getpixel((0, 0)) for image in images] == [(128, 0, 0), (255, 128, 128)]
    only = served.predict(pd.DataFrame({"prompt": ["blue"]}))
    raw = Image.open(io.BytesIO(base64.b64decode(only["image"][0])))
    assert raw.format == "PNG"
    assert np.asarray(raw)[0, 0].tolist() == [0, 0, 128]
    for bad, message in [
        (pd.DataFrame({"prompt": ["red"], "image": ["no image"]}), "row 0, image"),
        (pd.DataFrame({"prompt": [" "]}), "row 0, prompt: is empty"),
    ]:
        with pytest.raises(MlflowException, match=message):
            served.predict(bad)
    with pytest.raises(MlflowException):
        served.predict(pd.DataFrame({"words": ["red"]}))


def test_a_served_student_asks_for_versions_that_an_index_has(
    store, tracking, run_id, student_folder
):
    """Each is the one of ``constraints.txt``, whatever build of it is installed here."""
    register_student(store, lambda: run_id, student_folder, NAME, evidence_of(0.5))
    pins = (ROOT / "constraints.txt").read_text().lower().split()
    assert set(requirements()) <= set(pins)
    (written,) = (tracking.root / "mlartifacts").rglob("requirements.txt")
    assert written.read_text().split() == requirements()
    assert not any("+" in file.read_text() for file in written.parent.glob("*.yaml"))


def test_changed_weights_in_the_store_are_refused(
    store, tracking, run_id, student_folder, promotions
):
    register_student(store, lambda: run_id, student_folder, NAME, evidence_of(0.5))
    (weights,) = (tracking.root / "mlartifacts").rglob("weights.json")
    weights.write_text('{"strength": 0.9}')
    with pytest.raises(WeightsError, match="not what was registered"):
        open_student(f"models:/{NAME}/1", tracking)
    import mlflow

    with store.as_current(), pytest.raises(WeightsError, match="not what was registered"):
        mlflow.pyfunc.load_model(f"models:/{NAME}/1")


@pytest.mark.parametrize(
    ("source", "error", "message"),
    [
        ("champion", TrackingError, f"no student is registered as {NAME} yet"),
        (f"models:/{NAME}@champion", TrackingError, f"no student is registered as {NAME} yet"),
        (f"models:/{NAME}/7", TrackingError, "7"),
        (f"models:/{NAME}", UsageError, "models:/<name>@<alias>"),
        ("runs:/0000", TrackingError, "no student was registered from this run"),
    ],
)
def test_a_source_that_is_not_there_is_named(tracking, source, error, message):
    with pytest.raises(error, match=message):
        open_student(source, tracking)


def test_a_foreign_model_is_refused(tracking, store):
    store.client.create_registered_model(NAME)
    store.client.create_model_version(NAME, "/nowhere")
    with pytest.raises(TrackingError, match="is no danceflow student"):
        open_student(f"models:/{NAME}/1", tracking)


def test_there_must_be_something_to_register(store, run_id, tmp_path):
    with pytest.raises(WeightsError, match="no student to register"):
        register_student(store, lambda: run_id, tmp_path / "gone", NAME, evidence_of(0.5))


# --------------------------------------------------------------------------------- promotion


def test_the_first_that_passes_becomes_champion(store, promotions, entered, run_id):
    standing = promotions.consider(entered(0.5), POLICY, auto_promote=True)
    assert standing.champion
    assert champion(promotions) == 1
    assert promotions.holder(CHALLENGER).version == promotions.holder(CHAMPION).version
    (change,) = promotions.history()
    assert (change.action, change.version, change.previous) == ("promote", 1, None)
    assert "version 1 is the champion (before: no champion)" in str(change)
    assert store.client.get_run(run_id).data.tags[GATE_TAG] == "true"


def test_a_version_that_fails_stays_challenger_and_says_why(store, promotions, entered):
    promotions.consider(entered(0.8), POLICY, auto_promote=True)
    standing = promotions.consider(entered(0.7), POLICY, auto_promote=True)
    assert not standing.champion
    assert champion(promotions) == 1
    challenger = promotions.holder(CHALLENGER)
    assert int(challenger.version) == 2
    assert challenger.tags[GATE_TAG] == "false"
    assert (
        "t2i: keeps 87.5% (between 87.5% and 87.5%), needs 95.0% of the champion"
        in challenger.tags[REASONS_TAG]
    )
    with pytest.raises(GateError, match="version 2 does not pass the gate: t2i"):
        promotions.promote(None, POLICY)
    assert len(promotions.history()) == 1


def test_without_leave_a_version_waits_for_a_person(promotions, entered):
    standing = promotions.consider(entered(0.5), POLICY, auto_promote=False)
    assert standing.verdict.passed
    assert champion(promotions) is None
    assert promotions.promote(None, POLICY).version == 1
    with pytest.raises(UsageError, match="version 1 is the champion already"):
        promotions.promote(1, POLICY)


def test_considering_the_champion_again_changes_nothing(promotions, entered):
    version = entered(0.5)
    promotions.consider(version, POLICY, auto_promote=True)
    standing = promotions.consider(version, POLICY, auto_promote=True)
    assert standing.champion
    assert len(promotions.history()) == 1


def test_rolling_back_goes_back_one_by_one_and_is_not_undone_by_a_schedule(
    store, promotions, entered
):
    versions = [entered(score) for score in (0.5, 0.6, 0.7)]
    for version in versions:
        promotions.consider(version, POLICY, auto_promote=True)
    assert champion(promotions) == 3
    assert str(promotions.rollback()) == "rollback: version 2 is the champion (before: version 3)"
    assert champion(promotions) == 2

    again = store.client.get_model_version(NAME, "3")
    standing = promotions.consider(again, POLICY, auto_promote=True)
    assert standing.verdict.passed
    assert standing.withdrawn
    assert champion(promotions) == 2

    assert promotions.rollback().version == 1
    with pytest.raises(UsageError, match="no champion before version 1"):
        promotions.rollback()
    assert promotions.promote(3, POLICY).version == 3
    assert champion(promotions) == 3
    assert promotions.rollback().version == 1
    assert [change.action for change in promotions.history()] == [
        *["promote"] * 3,
        *["rollback"] * 2,
        "promote",
        "rollback",
    ]


def test_a_champion_made_elsewhere_can_be_rolled_back(store, promotions, entered):
    promotions.consider(entered(0.5), POLICY, auto_promote=True)
    entered(0.6)
    store.client.set_registered_model_alias(NAME, CHAMPION, "2")
    assert promotions.rollback().version == 1


@pytest.mark.parametrize(
    ("deleted", "champions"),
    [
        ([3], [2, 1]),  # of four, what each rollback comes to
        ([2, 3], [1]),
        ([1], [3, 2]),
        ([4], [3, 2, 1]),  # the champion itself
        ([3, 4], [2, 1]),
        ([1, 2, 3], []),
        ([1, 2, 3, 4], []),
    ],
)
def test_rolling_back_passes_over_versions_that_were_deleted(
    store, promotions, entered, deleted, champions
):
    for score in (0.5, 0.6, 0.7, 0.8):
        promotions.consider(entered(score), POLICY, auto_promote=True)
    for number in deleted:
        store.client.delete_model_version(NAME, str(number))
    assert [promotions.rollback().version for _ in champions] == champions
    live = champions[-1] if champions else None if 4 in deleted else 4
    assert champion(promotions) == live
    history = promotions.history()
    with pytest.raises(UsageError, match="there was no champion before version"):
        promotions.rollback()
    assert promotions.history() == history
    assert champion(promotions) == live
    versions = store.client.search_model_versions(f"name = '{NAME}'")
    withdrawn = {int(version.version) for version in versions if "withdrawn" in version.tags}
    assert withdrawn == ({4, *champions} - {live, *deleted})


def test_what_was_deleted_is_told_when_nothing_is_left(store, promotions, entered):
    for score in (0.5, 0.6, 0.7):
        promotions.consider(entered(score), POLICY, auto_promote=True)
    for number in (1, 2):
        store.client.delete_model_version(NAME, str(number))
    told = r"no champion before version 3 that is still there \(deleted: 1, 2\)"
    with pytest.raises(UsageError, match=told):
        promotions.rollback()
    assert champion(promotions) == 3


def test_after_the_champion_was_deleted_the_next_is_judged_without_it(store, promotions, entered):
    promotions.consider(entered(0.8), POLICY, auto_promote=True)
    store.client.delete_model_version(NAME, "1")
    assert promotions.holder(CHAMPION) is None
    assert promotions.holder(CHALLENGER) is None
    with pytest.raises(UsageError, match="has no challenger"):
        promotions.promote(None, POLICY)
    with pytest.raises(UsageError, match="has no version 1"):
        promotions.promote(1, POLICY)
    assert promotions.consider(entered(0.5), POLICY, auto_promote=True).champion
    with pytest.raises(UsageError, match=r"deleted: 1"):
        promotions.rollback()
    assert [change.version for change in promotions.history()] == [1, 2]


def test_an_alias_of_a_version_that_is_gone_counts_as_none(store, promotions, entered, tracking):
    """MLflow's own stores take the alias away with the version; others need not."""
    for score in (0.5, 0.6):
        promotions.consider(entered(score), POLICY, auto_promote=True)
    connection = sqlite3.connect(tracking.root / "mlflow.db")
    connection.execute("UPDATE registered_model_aliases SET version = 7")
    connection.commit()
    connection.close()
    assert promotions.holder(CHAMPION) is None
    with pytest.raises(UsageError, match="has no version 7"):
        promotions.promote(None, POLICY)
    # 2 was the champion before whatever is gone, and it is still there.
    assert promotions.rollback().version == 2


def test_a_version_whose_run_was_deleted_is_judged_all_the_same(store, promotions, entered, run_id):
    version = entered(0.5)
    store.client.delete_run(run_id)
    assert promotions.consider(version, POLICY, auto_promote=True).champion
    (holder,) = store.client.search_model_versions(f"name = '{NAME}'")
    assert holder.tags[GATE_TAG] == "true"
    assert GATE_TAG not in store.client.get_run(run_id).data.tags


@pytest.mark.parametrize("alias", [CHAMPION, CHALLENGER])
def test_opening_an_alias_whose_version_was_deleted_says_what_to_do(
    store, tracking, promotions, entered, alias
):
    promotions.consider(entered(0.5), POLICY, auto_promote=True)
    store.client.delete_model_version(NAME, "1")
    with pytest.raises(
        TrackingError, match=f"student has no {alias}.* deleted; `danceflow promote"
    ):
        open_student(alias, tracking)
    with pytest.raises(TrackingError, match="version=1.* not found"):
        open_student(f"models:/{NAME}/1", tracking)


@pytest.mark.parametrize(
    ("number", "message"), [(None, "has no challenger"), (5, "has no version 5")]
)
def test_what_is_not_there_cannot_be_promoted(promotions, number, message):
    with pytest.raises(UsageError, match=message):
        promotions.promote(number, POLICY)
    with pytest.raises(UsageError, match="has no champion"):
        promotions.rollback()


def test_a_version_without_an_evaluation_cannot_be_judged(store, promotions):
    store.client.create_registered_model(NAME)
    store.client.create_model_version(NAME, "/nowhere")
    with pytest.raises(TrackingError, match="version 1 holds no evaluation"):
        promotions.promote(1, POLICY)


def test_opening_a_student_from_a_folder_does_not_import_mlflow():
    code = "import danceflow.registry.open, sys; sys.exit('mlflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
