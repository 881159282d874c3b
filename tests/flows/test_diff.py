import json
from pathlib import Path

import pytest
from registered import checkout_in, enter

from danceflow.errors import UsageError
from danceflow.pictures import read_own
from flows import promote
from flows.diff import as_page, as_text, check_out, side_by_side, write


@pytest.fixture
def root(tmp_path: Path, mlflow_template: Path) -> Path:
    root = checkout_in(tmp_path / "checkout", mlflow_template)
    enter(root, 0.8, {"distill.seed": "0", "same": "1"}, "red")
    enter(root, 0.9, {"distill.seed": "<b>1</b>", "same": "1"}, "blue")
    enter(root, 0.9, {"distill.seed": "2"})
    promote.promote(root, 1)
    return root


def test_two_versions_are_told_apart(root):
    found = promote.compare(root, "champion", "2", pictures=True)
    assert found.names == ("version 1 (champion)", "version 2")
    score = found.scores["t2i"]
    assert (score.first, score.second) == (pytest.approx(0.8), pytest.approx(0.9))
    assert score.difference == pytest.approx(0.1)
    assert score.interval == pytest.approx((0.1, 0.1))
    assert score.num_prompts == 30
    assert found.parameters == {"distill.seed": ("0", "<b>1</b>")}
    assert found.sources["commit"] == ("commit-of-0.8", "commit-of-0.9")
    (grid,) = found.grids
    assert (grid.key, grid.first_step, grid.second_step) == ("grid/t2i", 20, 20)
    sheet = side_by_side(found)
    colours = {sheet.getpixel((x, 40)) for x in range(sheet.width)}
    assert {(255, 0, 0), (0, 0, 255)} <= colours

    text = as_text(found)
    assert "t2i          0.8000  0.9000  +0.1000 (+0.1000 to +0.1000), 30 prompts" in text
    assert "distill.seed  0  <b>1</b>" in text
    json.dumps(found.as_json())


def test_a_page_and_a_picture_are_written(root, tmp_path):
    found = promote.compare(root, "1", "2", pictures=True)
    write(tmp_path / "diff.html", found)
    page = (tmp_path / "diff.html").read_text()
    assert page.count("<img") == 2
    assert "<b>" not in page
    assert "&lt;b&gt;1&lt;/b&gt;" in page
    assert "class=better" in page
    write(tmp_path / "diff.png", found)
    assert read_own((tmp_path / "diff.png").read_bytes()).width > 16
    with pytest.raises(UsageError, match=r"diff.txt: write a file that ends with .html or .png"):
        check_out(tmp_path / "diff.txt")


def test_what_is_missing_is_said(root, tmp_path):
    one_sided = promote.compare(root, "2", "3", pictures=True)
    assert one_sided.grids[0].second is None
    assert "no picture" in as_page(one_sided)
    side_by_side(one_sided)
    without = promote.compare(root, "3", "3", pictures=True)
    assert "The runs hold none." in as_page(without)
    with pytest.raises(UsageError, match="the runs of the two versions hold no pictures"):
        write(tmp_path / "diff.png", without)
    for name, said in [("7", "has no version 7"), ("best", "has no best: .* an alias .champion")]:
        with pytest.raises(UsageError, match=said):
            promote.compare(root, "1", name, pictures=False)
