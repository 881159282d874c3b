"""Evidence in a real store: kept by evaluation, never overwritten, compared by equal ones only."""

import itertools
import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import pytest
from scored import ASKED, evidence_of, scored

from danceflow.errors import DataError, TrackingError
from danceflow.ops.tracking import Store, TrackingSettings, open_store, start_run
from danceflow.params.sections import GateParams
from danceflow.registry.card import MAX_DESCRIPTION, MAX_TAG, VERDICT_FILE
from danceflow.registry.evidence import EVIDENCE_TAG, current, keep, rival_of, stored
from danceflow.registry.open import DIGEST_TAG
from danceflow.registry.promotion import CHAMPION, DECISION_TAG, REASONS_TAG, Promotions
from danceflow.registry.register import register_student
from danceflow.report.evidence import Evidence, Scored

NAME = "student"
POLICY = GateParams(
    confidence=0.95,
    min_score={},
    min_retention={"t2i": 0.9},
    max_regression=0.05,
    auto_promote=True,
)


class Here:
    """A checkout whose evaluation finds what the test says, and notes whom it evaluated."""

    def __init__(self, score: float, error: Exception | None = None, **asked: Any) -> None:
        self.found = scored(score, None, **asked)
        self.error = error
        self.evaluated: list[str] = []

    def identities(self) -> Mapping[str, Mapping[str, Any]]:
        return {"t2i": self.found.identity}

    def evaluate(self, package: Path, capabilities: Collection[str]) -> Mapping[str, Scored]:
        if self.error is not None:
            raise self.error
        self.evaluated.append((package / "weights.json").read_text())
        return dict.fromkeys(capabilities, self.found)


@pytest.fixture
def store(tracking: TrackingSettings) -> Store:
    return open_store(tracking)


@pytest.fixture
def enter(store, tracking, tmp_path, student_folder):
    """Register a student of other content each time, from a run of its own."""
    numbers = itertools.count(1)

    def entered(evidence: Evidence, number: int | None = None):
        number = next(numbers) if number is None else number
        (student_folder / "weights.json").write_text(json.dumps({"strength": number}))
        pointer = tmp_path / f"run-{number}.json"
        with start_run(tracking, pointer, name="n", key=str(number), params={}) as tracker:
            run_id = str(tracker.run_id)
        made = register_student(store, lambda: run_id, student_folder, NAME, evidence).version
        return store.client.get_model_version(NAME, made.version)

    return entered


def test_the_champion_evaluated_otherwise_does_not_let_a_worse_student_pass(store, enter):
    """Its own content with one step instead of sixteen scores 1.97 instead of 6.84."""
    promotions = Promotions(store, NAME, Here(1.0))
    promotions.consider(enter(evidence_of(0.684, num_steps=16)), POLICY, auto_promote=True)
    again = enter(evidence_of(0.197, num_steps=1), number=1)
    assert promotions.consider(again, POLICY, auto_promote=True).champion
    assert current(store, again) == evidence_of(0.197, num_steps=1)
    assert stored(store, again)[1] == evidence_of(0.684, num_steps=16)

    standing = promotions.consider(enter(evidence_of(0.5, num_steps=16)), POLICY, auto_promote=True)
    assert not standing.champion
    assert standing.verdict.decision == "fail"
    assert "t2i: keeps 73.1%" in standing.verdict.reasons[0]


def test_the_champion_is_evaluated_by_the_student_s_evaluation_and_that_is_kept(store, enter):
    here = Here(0.8, num_steps=16)
    promotions = Promotions(store, NAME, here)
    champion = enter(evidence_of(0.197, num_steps=1))
    promotions.consider(champion, POLICY, auto_promote=True)
    worse = promotions.consider(enter(evidence_of(0.5, num_steps=16)), POLICY, auto_promote=True)
    assert worse.verdict.decision == "fail"
    assert here.evaluated == ['{"strength": 1}']
    kept = stored(store, store.client.get_model_version(NAME, champion.version))
    assert [item.capabilities["t2i"].identity["num_steps"] for item in kept] == [1, 16]
    assert kept[1].capabilities["t2i"] == here.found

    better = promotions.consider(enter(evidence_of(0.79, num_steps=16)), POLICY, auto_promote=True)
    assert better.champion
    assert len(here.evaluated) == 1  # what is kept is not asked again


def test_where_the_checkout_evaluates_otherwise_both_are_evaluated(store, enter):
    here = Here(0.6, num_steps=4)
    promotions = Promotions(store, NAME, here)
    promotions.consider(enter(evidence_of(0.5, num_steps=1)), POLICY, auto_promote=True)
    standing = promotions.consider(enter(evidence_of(0.5, num_steps=2)), POLICY, auto_promote=True)
    assert standing.champion
    assert here.evaluated == ['{"strength": 1}', '{"strength": 2}']
    retention, regression = standing.verdict.checks
    assert (retention.value, regression.value) == (1.0, 1.0)


@pytest.mark.parametrize("trouble", ["gone", "changed", "fails", "nobody", "other"])
def test_a_champion_that_cannot_be_evaluated_is_not_passed_over(store, tracking, enter, trouble):
    error = DataError("the data are not prepared") if trouble == "fails" else None
    here = None if trouble == "nobody" else Here(0.1, error, num_steps=16)
    capabilities = ("text",) if trouble == "other" else ("t2i",)
    champion = enter(evidence_of(0.9, num_steps=1, capabilities=capabilities))
    policy = POLICY.model_copy(update={"min_retention": {}})
    Promotions(store, NAME).consider(champion, policy, auto_promote=True)
    (weights,) = (tracking.root / "mlartifacts").rglob("weights.json")
    if trouble == "gone":
        weights.unlink()
        weights.parent.rmdir()
    if trouble == "changed":
        weights.write_text('{"strength": 0.5}')
    student = enter(evidence_of(0.99, num_steps=16, capabilities=capabilities))
    standing = Promotions(store, NAME, here).consider(student, policy, auto_promote=True)
    said = {
        "gone": "artifact",
        "changed": "not what was registered",
        "fails": "the data are not prepared",
        "nobody": "no checkout here",
        "other": "params.yaml has no capability text",
    }
    assert standing.verdict.decision == "unknown"
    assert (
        f"{capabilities[0]}: the champion (version 1) was evaluated otherwise (num_steps): "
        in (standing.verdict.reasons[0])
    )
    assert said[trouble] in standing.verdict.reasons[0]
    assert not standing.champion
    assert Promotions(store, NAME).holder(CHAMPION).version == champion.version


def test_a_champion_from_before_evidence_was_kept_is_evaluated(store, enter):
    champion = enter(evidence_of(0.9))
    Promotions(store, NAME).consider(champion, POLICY, auto_promote=True)
    store.client.delete_model_version_tag(NAME, champion.version, EVIDENCE_TAG)
    (kept,) = (item.path for item in files(store, champion))
    file(store, champion, kept).unlink()
    here = Here(0.9)
    old = store.client.get_model_version(NAME, champion.version)
    found = rival_of(store, evidence_of(0.9), enter(evidence_of(0.9)), old, here)
    assert len(here.evaluated) == 1
    assert found.evidence.capabilities["t2i"] == here.found
    with pytest.raises(TrackingError, match="version 1 holds no evaluation to judge it by"):
        current(store, old)


def files(store: Store, version):
    digest = version.tags[DIGEST_TAG]
    return store.client.list_artifacts(version.run_id, f"evidence/{digest[:16]}")


def file(store: Store, version, place: str) -> Path:
    root = store.client.get_run(version.run_id).info.artifact_uri.removeprefix("file://")
    return Path(root) / place


def test_evidence_is_added_and_never_overwritten(store, enter):
    version = enter(evidence_of(0.5))
    first = version.tags[EVIDENCE_TAG]
    digest = version.tags[DIGEST_TAG]
    before = file(store, version, first).stat()
    assert keep(store, version.run_id, digest, evidence_of(0.5)) == first
    assert file(store, version, first).stat().st_mtime_ns == before.st_mtime_ns
    others = {
        keep(store, version.run_id, digest, found)
        for found in (evidence_of(0.6), evidence_of(0.5, num_steps=1))
    }
    assert {item.path for item in files(store, version)} == {first, *others}
    assert current(store, version) == evidence_of(0.5)
    assert len(stored(store, version)) == 3


def test_changed_evidence_is_found_out(store, enter, caplog):
    version = enter(evidence_of(0.5))
    place = file(store, version, version.tags[EVIDENCE_TAG])
    place.write_text(place.read_text().replace("0.5", "0.9"))
    with pytest.raises(DataError, match="its content is not what was written"):
        current(store, version)
    assert stored(store, version) == []
    assert "its content is not what was written" in caplog.text
    place.unlink()
    with pytest.raises(TrackingError, match="its evaluation evidence/.* is gone from run"):
        current(store, version)


def test_sixty_capabilities_fit_into_tags_and_card(store, enter):
    names = [f"capability_with_a_long_name_{number:02d}" for number in range(60)]
    version = enter(evidence_of(0.5, 0.8, capabilities=names))
    policy = POLICY.model_copy(update={"min_retention": dict.fromkeys(names, 0.9)})
    standing = Promotions(store, NAME).consider(version, policy, auto_promote=True)
    assert len(standing.verdict.reasons) == 60
    now = store.client.get_model_version(NAME, version.version)
    run = store.client.get_run(version.run_id)
    for tags in (now.tags, run.data.tags):
        assert max(len(value.encode()) for value in tags.values()) <= MAX_TAG
        assert tags[DECISION_TAG] == "fail"
        assert f"more in {VERDICT_FILE}" in tags[REASONS_TAG]
    assert len(now.description) <= MAX_DESCRIPTION
    assert "more in the run's files" in now.description
    text = file(store, version, VERDICT_FILE).read_text()
    assert len(json.loads(text)["checks"]) == 60
    assert current(store, now).capabilities.keys() == {*names}


def test_the_card_tells_what_a_person_needs(store, enter):
    promotions = Promotions(store, NAME)
    promotions.consider(enter(evidence_of(0.9)), POLICY, auto_promote=True)
    promotions.consider(enter(evidence_of(0.8, 0.8)), POLICY, auto_promote=True)
    card = store.client.get_model_version(NAME, "2").description
    for words in (
        "# student, version 2",
        "It does not pass the gate (confidence 95%, compared with version 1).",
        "| t2i (of 1) | 0.8 | 1 | 80.0% | 80% to 80% | 30 |",
        "- **fail** t2i: keeps 80.0% (between 80.0% and 80.0%), needs 90.0% of the teacher's score",
        "of the champion's score",
        "Teachers: base",
        "Evaluation: rows",
        'open_student("models:/student/2")',
        "## Limits",
    ):
        assert words in card
    first = store.client.get_model_version(NAME, "1").description
    assert "It passes the gate (confidence 95%, without a champion)." in first


def test_identities_are_compared_whole() -> None:
    assert scored(1.0).differs_from(scored(0.5)) == []
    other = {**ASKED, "num_steps": 5, "guidance": 2.0}
    assert scored(1.0).differs_from(scored(1.0, **other)) == ["num_steps", "guidance"]
    assert (
        evidence_of(1.0).identity
        == evidence_of(0.5).identity
        != evidence_of(1.0, num_steps=5).identity
    )
