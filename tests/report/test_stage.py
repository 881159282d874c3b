"""The report: the agreed summary, the verdict, and a page that stands on its own."""

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from browser import assert_looks, browser, findings, small_screen
from PIL import Image
from training_record import CAPABILITIES, write_metrics

from danceflow.errors import DataError
from danceflow.ops import timings
from danceflow.ops.timings import Cost
from danceflow.ops.tracking import RunPointer
from danceflow.paths import Paths
from danceflow.report import stage as report
from danceflow.report.curves import Curves
from danceflow.report.page.page import MAX_BYTES, duration, figure, human, percent, size

VOID = {"meta", "img", "br", "line", "circle", "polyline", "link", "hr", "input"}


class Page(HTMLParser):
    """Collects elements and checks that they are closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("style", "pre"):
            self.words.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.elements if name == tag]

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.words))


@pytest.fixture
def copy(reported, tmp_path: Path):
    params, paths = reported
    shutil.copytree(paths.root, tmp_path / "copy")
    return params, Paths(tmp_path / "copy")


@pytest.fixture(scope="module")
def page(reported) -> Page:
    return Page(reported[1].report_page.read_text())


def test_the_summary_has_the_agreed_form(reported) -> None:
    _, paths = reported
    summary = json.loads(paths.summary.read_text())
    assert list(summary["capabilities"]) == [*CAPABILITIES]
    for row in summary["capabilities"].values():
        assert list(row) == [
            "student",
            "teacher",
            "start",
            "retention",
            "retention_interval",
            "num_samples",
        ]
    assert {"conflict", "gain", "categories", "variants", "metrics", "curve", "stages"} <= set(
        summary
    )
    assert set(summary["conflict"]["fields"]) == {
        "student",
        "start",
        *(f"teacher:{name}" for name in ("base", "local", "global")),
    }
    assert set(summary["stages"]) == {"distill", *(f"evaluate@{name}" for name in CAPABILITIES)}
    assert summary["curve"]["t2i"][0] == [0.0, 0.1]
    assert summary["training"] == {"num_updates": 60, "field_evaluations": 580}


def test_the_metrics_are_what_runs_are_compared_by(reported) -> None:
    _, paths = reported
    summary = json.loads(paths.summary.read_text())["capabilities"]
    found = json.loads(paths.metrics.read_text())
    assert list(found) == ["score", "retention", "verdict", "field_evaluations", "seconds"]
    assert found["score"] == {name: row["student"] for name, row in summary.items()}
    kept = {name: row["retention"] for name, row in summary.items()}
    assert found["retention"] == {name: share for name, share in kept.items() if share is not None}
    assert found["verdict"] == json.loads(paths.gate.read_text())["decision"] == "unknown"
    assert found["field_evaluations"] == 580
    seconds = json.loads(paths.summary.read_text())["stages"].values()
    assert found["seconds"] == round(sum(seconds))


def test_the_page_shows_no_login(copy) -> None:
    params, paths = copy
    uri = "http://ann:secret@host:5000"
    paths.params.write_text(paths.params.read_text() + f"# tracking.uri was {uri}\n")
    report.run(params, paths)
    text = paths.report_page.read_text()
    assert "secret" not in text
    assert "http://***@host:5000" in text


def test_the_verdict_is_the_gates(reported) -> None:
    _, paths = reported
    gate = json.loads(paths.gate.read_text())
    assert gate["passed"] is False
    assert [check["capability"] for check in gate["checks"]] == [*CAPABILITIES]


def test_the_page_asks_for_nothing_else(reported, page) -> None:
    text = reported[1].report_page.read_text()
    assert not page.all("link")
    assert not page.all("script")
    assert not page.all("iframe")
    for image in page.all("img"):
        assert image["src"].startswith("data:image/png;base64,")
    for anchor in page.all("a"):
        assert anchor["href"].startswith("#")
    assert "url(" not in text
    assert "@import" not in text


def test_the_page_can_be_read_without_eyes(page) -> None:
    assert page.all("html") == [{"lang": "en"}]
    assert len(page.all("h1")) == 1
    images = page.all("img")
    assert len(images) > 30
    assert all(image["alt"] for image in images)
    assert all(svg["role"] == "img" and svg["aria-label"] for svg in page.all("svg"))
    assert all(th["scope"] in ("col", "row", "rowgroup") for th in page.all("th"))
    targets = {attrs["id"] for _, attrs in page.elements if "id" in attrs}
    assert {anchor["href"][1:] for anchor in page.all("a")} == targets


def test_the_page_tells_the_whole_story(page) -> None:
    for words in (
        "Does not pass the gate",
        "Text to image",
        "Local edit",
        "Why one teacher is not enough",
        "Base teacher",
        "Start student",
        "Color attribution",
        "Held-out pairs",
        "Pixels of the source that stay as they are: the student",
        "Python",
        "Validation scores while training",
        "Loss by noise level",
        "FID, own extractor conv64",
        "evaluate@local_edit",
        "One right answer",
        "Exact target",
    ):
        assert words in page.text, words
    assert len(page.all("svg")) >= 3


def test_the_page_tells_what_is_kept_in_fewer_steps(reported, page) -> None:
    steps = json.loads(reported[1].summary.read_text())["steps"]
    assert list(steps) == [*CAPABILITIES]
    for found in steps.values():
        assert [row["steps"] for row in found["rows"]] == [4, 2, 1]
        assert (found["student_steps"], found["teacher_steps"]) == (2, 2)
        assert [row["student"]["passes"] for row in found["rows"]] == [4, 2, 1]
    guided = [row["teacher"]["passes"] for row in steps["t2i"]["rows"]]
    assert guided == [8, 4, 2]
    assert "What is kept in fewer steps" in page.text
    assert page.text.count("recommended") == len(CAPABILITIES) + 1  # and what it means
    assert {"href": "#steps"} in page.all("a")


def test_without_further_steps_the_page_says_nothing_of_them(copy) -> None:
    params, paths = copy
    for name in CAPABILITIES:
        path = paths.evaluation_by_steps(name)
        found = json.loads(path.read_text())
        for field in ("student", "teacher"):
            found[field]["scores"] = {"2": found[field]["scores"]["2"]}
        path.write_text(json.dumps(found))
    report.run(params, paths)
    page = Page(paths.report_page.read_text())
    assert {"href": "#steps"} not in page.all("a")
    assert "fewer steps" not in page.text


def test_dark_pages_have_their_own_colours(reported) -> None:
    text = reported[1].report_page.read_text()
    assert "prefers-color-scheme: dark" in text
    names = set(re.findall(r"var\((--[a-z0-9-]+)", text))
    root, dark, paper = re.findall(r":root \{(.*?)\}", text, re.DOTALL)
    for name in names - {"--share", "--line-colour"}:
        assert f"{name}:" in root, name
        assert f"{name}:" in dark, name
        assert f"{name}:" in paper, name


def test_prompts_cannot_break_the_page(copy) -> None:
    params, paths = copy
    index = paths.evaluation_images("t2i") / "tiles.json"
    content = json.loads(index.read_text())
    content["rows"][0]["prompt"] = '<script>alert("x")</script>'
    index.write_text(json.dumps(content))
    report.run(params, paths)
    text = paths.report_page.read_text()
    assert "<script>" not in text
    assert "&lt;script&gt;" in text


def test_teachers_are_told_with_their_training(copy) -> None:
    params, paths = copy
    row = {
        "num_parameters": 1234567,
        "num_updates": 4000,
        "curve": [[100, 0.1, 60.0], [4000, 0.02, 1892.0]],
    }
    paths.teachers_report.write_text(json.dumps({"teachers": {"base": row}, "seconds": 1.0}))
    report.run(params, paths)
    assert "Base teacher 1,234,567 4,000 32 min" in Page(paths.report_page.read_text()).text


def test_a_method_without_training_is_told(copy) -> None:
    params, paths = copy
    paths.distill_metrics.write_text('{"step": 0, "scores": {"t2i": 0.2}}\n')
    report.run(params, paths)
    assert "This method trains nothing" in Page(paths.report_page.read_text()).text
    assert "distill" not in json.loads(paths.summary.read_text())["stages"]


def test_what_was_measured_here_goes_before_what_files_tell(copy) -> None:
    params, paths = copy
    timings.record(paths.scratch, "distill", Cost(123.0, 200.0, 1_500_000_000))
    timings.record(paths.scratch, "prepare", Cost(4.0, 200.0, 1_500_000_000))
    timings.record(paths.scratch, "report", Cost(1.0, 200.0, 1_500_000_000))
    report.run(params, paths)
    stages = json.loads(paths.summary.read_text())["stages"]
    assert list(stages)[:2] == ["prepare", "distill"]
    assert stages["distill"] == 123.0
    assert "report" not in stages
    page = Page(paths.report_page.read_text()).text
    assert re.search(r"distill 2 min \d+ % 3 min 1.5 GB", page)
    assert re.search(r"evaluate@t2i [^%]+ % – –", page)


def test_stages_come_in_the_order_of_the_pipeline() -> None:
    recorded = {"evaluate@t2i": 1.0, "teachers": 9.0, "cache@t2i": 2.0, "prepare": 3.0}
    found = report.stage_seconds(recorded, {}, Curves(seconds=9.0))
    assert list(found) == ["prepare", "cache@t2i", "distill", "evaluate@t2i"]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda p: p.evaluation("local_edit").unlink(), "evaluate/local_edit.json"),
        (lambda p: p.evaluation("t2i").write_text("{"), "evaluate/t2i.json"),
        (lambda p: shutil.rmtree(p.evaluation_images("t2i")), "evaluate/t2i"),
        (lambda p: p.evaluation_by_steps("t2i").unlink(), "evaluate/t2i/by-steps.json"),
        (lambda p: p.distill_metrics.unlink(), "distill/metrics.jsonl"),
        (lambda p: p.teachers_report.unlink(), "reports/teachers.json"),
        (lambda p: p.data_report.write_text("[]"), "reports/data.json"),
    ],
)
def test_missing_and_damaged_files_are_told(copy, damage, message: str) -> None:
    params, paths = copy
    paths.report_page.unlink()
    damage(paths)
    with pytest.raises(DataError, match=re.escape(message)):
        report.run(params, paths)
    assert not paths.report_page.exists()


def test_a_run_is_named_and_its_links_are_looked_for_beside_the_page(copy) -> None:
    params, paths = copy
    assert not Page(paths.report_page.read_text()).all("object")
    pages = []
    for number in ("r1", "r2"):
        RunPointer(number, "danceopd-0123", "0123abcd", {}).write(paths.run_pointer)
        report.run(params, paths)
        pages.append(paths.report_page.read_text())
    assert pages[0] == pages[1]  # DVC keeps it: the number of a run is no part of it
    (shown,) = Page(pages[0]).all("object")
    beside = paths.run_links("0123abcd").relative_to(paths.reports)
    assert shown["data"] == str(beside)
    assert shown["aria-label"]
    assert "danceopd-0123" in Page(pages[0]).text


def test_a_page_stays_light_whatever_the_pictures(copy) -> None:
    params, paths = copy
    rng = np.random.default_rng(0)
    index = paths.evaluation_images("local_edit") / "tiles.json"
    content = json.loads(index.read_text())
    sheet = (256 * len(content["rows"]), 256 * len(content["columns"]), 3)
    noise = rng.integers(0, 256, sheet, dtype=np.uint8)
    Image.fromarray(noise).save(index.with_name("tiles.png"), compress_level=1)
    index.write_text(json.dumps({**content, "size": 256}))
    report.run(params, paths)
    text = paths.report_page.read_text()
    assert 500_000 < len(text.encode()) < MAX_BYTES < 3_000_000
    assert "Pictures are made smaller here" in text


def test_the_worst_stand_beside_the_first(copy) -> None:
    params, paths = copy
    index = paths.evaluation_images("local_edit") / "tiles.json"
    content = json.loads(index.read_text())
    content["rows"][-1] |= {"kind": "lost", "prompt": "the worst of all"}
    index.write_text(json.dumps(content))
    report.run(params, paths)
    page = paths.report_page.read_text()
    (beside,) = [part for part in page.split('class="beside"') if "the worst of all" in part]
    words = Page(f"<div {beside.partition('<h3>')[0].rpartition('</div>')[0]}</div>").text
    assert words.index("The first prompts") < words.index("Where the student loses most")
    assert words.index("Where the student loses most") < words.index("the worst of all")


def test_the_speed_is_that_of_the_training(copy) -> None:
    params, paths = copy
    lines = paths.distill_metrics.read_text().splitlines()
    last = {**json.loads(lines[-1]), "seconds": 6.0, "field_evaluations": 1000}
    paths.distill_metrics.write_text("\n".join([*lines[:-1], json.dumps(last)]) + "\n")
    report.run(params, paths)
    assert "Speed 6.00 ms per forward pass" in Page(paths.report_page.read_text()).text


def test_the_page_is_made_for_paper_too(reported) -> None:
    text = reported[1].report_page.read_text()
    _, _, paper = text.partition("@media print")
    assert "details::details-content" in paper  # what is folded is printed
    assert "color-scheme: light" in paper


def test_the_report_is_the_same_again(copy) -> None:
    params, paths = copy
    before = paths.report_page.read_text(), paths.summary.read_text()
    report.run(params, paths)
    assert (paths.report_page.read_text(), paths.summary.read_text()) == before


def test_capabilities_that_were_not_trained_yet_have_no_line(copy) -> None:
    params, paths = copy
    write_metrics(paths.distill_metrics, ("local_edit",))
    report.run(params, paths)
    assert "Loss by noise level: Local edit" in Page(paths.report_page.read_text()).text


def test_figures_are_worth_reading() -> None:
    assert [figure(v) for v in (None, 0.12345, 7.654, -0.5, 0.0)] == [
        "–",
        "0.123",
        "7.65",
        "-0.500",
        "0.000",
    ]
    assert [percent(v) for v in (None, 0.917, 1.02)] == ["–", "92 %", "102 %"]
    assert [duration(v) for v in (3.2, 600, 9000)] == ["3 s", "10 min", "2.5 h"]
    assert [size(v) for v in (12, 43_000, 1_250_000, 2.5e9)] == ["12 B", "43 kB", "1 MB", "2.5 GB"]
    assert [human(n) for n in ("t2i", "local_edit", "teacher:base", "held_out_pair")] == [
        "Text to image",
        "Local edit",
        "Base teacher",
        "Held-out pairs",
    ]


def test_the_page_looks_as_it_did(reported, request) -> None:
    """Its head, and its pictures below; without its style, or in a heap, it is far from both."""
    with browser() as opened:
        page = opened.new_page(color_scheme="light", viewport={"width": 1280, "height": 864})
        page.goto(reported[1].report_page.as_uri())
        for part in ("conflict", "pictures"):
            page.locator(f"#{part}").evaluate("(part) => part.scrollIntoView()")
            sound = small_screen(page)
            page.evaluate("document.styleSheets[0].disabled = true")
            page.locator(f"#{part}").evaluate("(part) => part.scrollIntoView()")
            plain = small_screen(page)
            page.evaluate("document.styleSheets[0].disabled = false")
            page.evaluate("document.body.style.columns = 3")
            heap = small_screen(page)
            page.evaluate("document.body.style.columns = ''")
            golden = Path(__file__).with_name(f"golden-{part}.png")
            is_recorded = request.config.getoption("--record-golden")
            assert_looks(golden, sound, [plain, heap], is_recorded=is_recorded)
        page.close()


def test_axe_finds_nothing_serious_in_light_dark_and_on_a_phone(reported) -> None:
    with browser() as opened:
        for scheme, width in (("light", 1280), ("dark", 1280), ("dark", 390)):
            size = {"width": width, "height": 860}
            page = opened.new_page(color_scheme=scheme, viewport=size)
            page.goto(reported[1].report_page.as_uri())
            page.evaluate("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
            assert findings(page) == []
            page.close()
