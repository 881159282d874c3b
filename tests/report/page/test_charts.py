"""Charts are well-formed SVG whose points lie where they should."""

from xml.etree import ElementTree

import pytest

from danceflow.report.page.charts import line_chart

SVG = "{http://www.w3.org/2000/svg}"


def draw(series, **options):
    labels = {"label": "a <chart>", "x_label": "update", "y_label": "score & more"}
    return ElementTree.fromstring(line_chart(series, **labels, **options))


def lines(chart) -> list[list[tuple[float, float]]]:
    return [
        [tuple(float(v) for v in point.split(",")) for point in line.get("points").split()]
        for line in chart.iter(f"{SVG}polyline")
    ]


def texts(chart, kind: str) -> list[str]:
    return [item.text for item in chart.iter(f"{SVG}text") if item.get("class") == kind]


def test_points_span_the_axes() -> None:
    chart = draw({"one": [(0, 0.0), (50, 0.5), (100, 1.0)]})
    assert lines(chart) == [[(52.0, 204.0), (250.0, 108.0), (448.0, 12.0)]]
    assert texts(chart, "axis") == ["update", "score & more"]
    assert texts(chart, "tick") == ["0", "0.25", "0.5", "0.75", "1", "0", "25", "50", "75", "100"]
    assert chart.get("aria-label") == "a <chart>"
    assert chart.get("role") == "img"


def test_a_range_is_kept_and_what_leaves_it_is_clipped() -> None:
    chart = draw({"one": [(0, 0.5), (10, 3.0)]}, y_range=(0.0, 1.0))
    assert lines(chart)[0][1][1] == 12.0


def test_logarithms_have_round_ticks() -> None:
    chart = draw({"one": [(0, 1.0), (1, 0.1), (2, 0.01), (3, 0.0)]}, log=True)
    assert lines(chart) == [[(52.0, 12.0), (250.0, 108.0), (448.0, 204.0)]]
    assert texts(chart, "tick")[:3] == ["0.01", "0.1", "1"]
    narrow = draw({"one": [(0, 0.3), (1, 0.03)]}, log=True)
    assert [t for t in texts(narrow, "tick") if t in ("0.03", "0.1", "0.3")]


def test_every_series_has_its_name_and_colour() -> None:
    chart = draw({"<one>": [(0, 1.0), (1, 2.0)], "none": [], "two": [(0, 2.0)]})
    assert [item.text for item in chart.iter(f"{SVG}title")] == ["<one>", "two"]
    styles = [item.get("style") for item in chart.iter(f"{SVG}g")]
    assert styles == ["--line-colour: var(--series-0)", "--line-colour: var(--series-2)"]


def test_a_single_value_is_drawn_in_the_middle() -> None:
    assert lines(draw({"one": [(5, 2.0)]})) == [[(250.0, 108.0)]]


@pytest.mark.parametrize("series", [{}, {"one": []}])
def test_nothing_cannot_be_drawn(series) -> None:
    with pytest.raises(ValueError, match="nothing to draw"):
        draw(series)


def test_only_zeros_have_no_logarithm() -> None:
    with pytest.raises(ValueError, match="nothing to draw"):
        draw({"one": [(0, 0.0)]}, log=True)


def test_numbers_that_double_stand_evenly_with_a_dot_each_and_a_ring_where_it_is_marked() -> None:
    points = [(2, 0.0), (4, 0.5), (8, 1.0)]
    chart = draw({"one": points, "two": points[:2]}, doubling=True, marks={"one": 4})
    assert lines(chart)[0] == [(52.0, 204.0), (250.0, 108.0), (448.0, 12.0)]
    assert texts(chart, "tick")[-3:] == ["2", "4", "8"]
    circles = [(c.get("class"), float(c.get("cx"))) for c in chart.iter(f"{SVG}circle")]
    dots = [("dot", 52.0), ("dot", 250.0), ("dot", 448.0)]
    assert circles == [*dots, ("ring", 250.0), *dots[:2]]
    plain = draw({"one": points}, marks={"one": 4})
    assert [c.get("cx") for c in plain.iter(f"{SVG}circle")] == ["448.0", "184.0"]
