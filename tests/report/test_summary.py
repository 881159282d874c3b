"""Retention, gain, conflict and variants from scores that are known."""

import pytest
from repository import ROOT

from danceflow.evaluate.records import Answer, Evaluation, FieldResult
from danceflow.params.read import load_params
from danceflow.report.summary import conflict_matrix, gap_closed, summarise
from danceflow.report.tables.cells import scores_of


def result(scores, variants=None, gap=None) -> FieldResult:
    """A field with (category, score) rows; every variant repeats them at another level."""
    rows = [
        Answer(uid=f"{i}", category=c, variant="standard", seed=0, score=s)
        for i, (c, s) in enumerate(scores)
    ]
    by_category: dict[str, list[float]] = {}
    for category, score in scores:
        by_category.setdefault(category, []).append(score)
    categories = {name: sum(v) / len(v) for name, v in by_category.items()}
    overall = sum(categories.values()) / len(categories)
    return FieldResult(
        score=overall,
        categories=categories,
        variants={"standard": overall, **(variants or {})},
        metrics={"psnr": 20.0},
        field_gap=gap or {},
        rows=rows,
    )


def evaluation(name: str, teacher: str, scale: float = 1.0, **fields) -> Evaluation:
    return Evaluation(
        capability=name,
        scale=scale,
        teacher=teacher,
        num_steps=4,
        extractor="conv64",
        seconds=1.0,
        fields={key.replace("_", ":"): value for key, value in fields.items()},
    )


def spread(mean: float) -> list[tuple[str, float]]:
    return [("one", mean + d) for d in (-0.1, 0.1)] + [("two", mean + d) for d in (-0.2, 0.2)]


@pytest.fixture
def evaluations() -> dict[str, Evaluation]:
    return {
        "t2i": evaluation(
            "t2i",
            "teacher:base",
            student=result(spread(0.76), {"reworded": 0.6}, {"all": 0.01}),
            start=result(spread(0.4)),
            teacher_base=result(spread(0.8), {"reworded": 0.8}),
            teacher_local=result(spread(0.2)),
        ),
        "local_edit": evaluation(
            "local_edit",
            "teacher:local",
            10.0,
            student=result(spread(9.0)),
            start=result(spread(2.0)),
            teacher_base=result(spread(1.0)),
            teacher_local=result(spread(8.0)),
        ),
    }


def test_capabilities_have_exactly_the_agreed_keys(evaluations) -> None:
    summary = summarise(evaluations, 100)
    for row in summary["capabilities"].values():
        assert list(row) == [
            "student",
            "teacher",
            "start",
            "retention",
            "retention_interval",
            "num_samples",
        ]
    row = summary["capabilities"]["t2i"]
    assert (row["student"], row["teacher"], row["start"]) == (0.76, 0.8, 0.4)
    assert row["retention"] == 0.95
    low, high = row["retention_interval"]
    assert low <= 0.95 <= high
    assert row["num_samples"] == 4


def test_gain_is_a_share_of_the_best_score(evaluations) -> None:
    gain = summarise(evaluations, 100)["gain"]
    assert gain["t2i"]["value"] == pytest.approx(0.36)
    assert gain["local_edit"]["value"] == pytest.approx(0.7)
    assert gain["local_edit"]["interval"] == pytest.approx([0.7, 0.7])


def test_the_gap_closed_is_the_part_of_the_way_from_start_to_teacher(evaluations) -> None:
    assert summarise(evaluations, 20)["gap_closed"] == {
        "t2i": {"score": pytest.approx(0.9)},
        "local_edit": {"score": pytest.approx(7 / 6, abs=1e-4)},
    }
    realism = {"student": 0.7, "start": 0.1, "teacher_base": 0.9}
    fields = {
        name: result(spread(0.5)).model_copy(update={"metrics": {"realism": value}})
        for name, value in realism.items()
    }
    found = gap_closed(evaluation("realism", "teacher:base", **fields))
    assert found == {"score": None, "realism": pytest.approx(0.75)}


def test_a_cell_of_a_sweep_holds_scores_and_gaps(evaluations) -> None:
    scores = scores_of(load_params(ROOT / "params.yaml"), evaluations)
    assert scores["student/t2i/overall/overall"] == 0.76
    assert scores["student/t2i/variant/reworded"] == 0.6
    assert scores["teacher/local_edit/category/one"] == 8.0
    assert scores["start/local_edit/overall/overall"] == 2.0
    assert scores["student/t2i/gap_closed/score"] == pytest.approx(0.9)
    small = evaluations["t2i"].model_copy(update={"teacher": "start"})
    none = scores_of(load_params(ROOT / "params.yaml"), {"t2i": small})
    assert not [name for name in none if "gap_closed" in name]


def test_the_conflict_matrix_shows_that_no_teacher_does_all(evaluations) -> None:
    conflict = conflict_matrix(evaluations)
    assert conflict["capabilities"] == ["t2i", "local_edit"]
    assert list(conflict["fields"]) == ["teacher:base", "teacher:local", "start", "student"]
    base, student = conflict["fields"]["teacher:base"], conflict["fields"]["student"]
    assert base["shares"] == {"t2i": 1.0, "local_edit": 0.125}
    assert base["least_share"] == 0.125
    assert conflict["fields"]["teacher:local"]["least_share"] == 0.25
    assert student["shares"] == {"t2i": 0.95, "local_edit": 1.125}
    assert student["least_share"] == 0.95
    assert conflict["own_teacher"]["local_edit"] == "teacher:local"


def test_a_field_that_was_not_asked_everything_has_no_least_share(evaluations) -> None:
    fields = dict(evaluations["t2i"].fields)
    del fields["teacher:local"]
    evaluations["t2i"] = evaluations["t2i"].model_copy(update={"fields": fields})
    row = conflict_matrix(evaluations)["fields"]["teacher:local"]
    assert list(row["scores"]) == ["local_edit"]
    assert row["least_share"] is None


def test_categories_variants_and_metrics(evaluations) -> None:
    summary = summarise(evaluations, 20)
    assert summary["categories"]["t2i"]["one"]["student"] == 0.76
    assert summary["variants"]["t2i"]["reworded"] == {
        "student": 0.6,
        "teacher": 0.8,
        "retention": 0.75,
    }
    assert summary["metrics"]["t2i"]["student"] == {"psnr": 20.0, "field_gap": {"all": 0.01}}
    assert summary["metrics"]["t2i"]["start"] == {"psnr": 20.0}


def test_a_teacher_that_scores_nothing_leaves_retention_open(evaluations) -> None:
    nothing = result([("one", 0.0), ("two", 0.0)])
    open_ = evaluation("t2i", "teacher:base", student=nothing, start=nothing, teacher_base=nothing)
    summary = summarise({"t2i": open_}, 20)
    row = summary["capabilities"]["t2i"]
    assert (row["retention"], row["retention_interval"]) == (None, None)
    assert summary["conflict"]["fields"]["student"]["least_share"] is None


def test_only_standard_rows_make_the_interval(evaluations) -> None:
    student = evaluations["t2i"].fields["student"]
    odd = Answer(uid="x", category="one", variant="reworded", seed=0, score=0.0)
    more = student.model_copy(update={"rows": (*student.rows, odd)})
    fields = {**evaluations["t2i"].fields, "student": more}
    changed = {"t2i": evaluations["t2i"].model_copy(update={"fields": fields})}
    assert (
        summarise(changed, 50)["capabilities"]["t2i"]
        == summarise({"t2i": evaluations["t2i"]}, 50)["capabilities"]["t2i"]
    )
