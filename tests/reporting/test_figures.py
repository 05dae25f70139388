import itertools
import re
from xml.etree import ElementTree

import pytest

from selfmoe_ray.reporting.figures import layer_heat_map, legend, line_chart, nice_ticks, stacked_bars


@pytest.mark.parametrize(("low", "high"), [(0, 3), (0.61, 2.48), (-4, 17), (2, 2), (0.0001, 0.0009), (0, 98765)])
def test_ticks_enclose_the_data_at_equal_steps(low, high):
    ticks = nice_ticks(low, high)
    assert ticks[0] <= low
    assert ticks[-1] >= high
    assert 3 <= len(ticks) <= 9
    steps = [after - before for before, after in itertools.pairwise(ticks)]
    assert steps == pytest.approx([steps[0]] * len(steps))


def test_a_line_stays_within_the_picture_and_long_ones_are_thinned():
    svg = line_chart({"math": [(step, 3 - step / 500) for step in range(1, 1001)]}, "Loss", "step", "loss")
    points = re.search(r'points="([^"]*)"', svg).group(1).split()
    assert 100 <= len(points) <= 240
    assert all(0 <= float(x) <= 480 and 0 <= float(y) <= 260 for x, y in (point.split(",") for point in points))


@pytest.mark.parametrize(
    "svg",
    [
        line_chart({"a & <b>": [(0, 1), (1, 2)], "point": [(0.5, 1.5)]}, "a < b", "x & y", "<y>"),
        stacked_bars({"a & <b>": {"kept <i>": 3, "lost": 1}}, "bars & more"),
        layer_heat_map([[0.2, 0.8], [1.0, 0.0]], ["<x>", "y & z"], "layers <1>"),
    ],
)
def test_figures_are_xml_with_escaped_names(svg):
    assert ElementTree.fromstring(svg).get("aria-label")


def test_nothing_to_draw_gives_nothing():
    assert line_chart({"math": []}, "t", "x", "y") == ""
    assert stacked_bars({}, "t") == ""


def test_the_legend_names_every_series():
    assert re.findall(r"</svg>([^<]*)</li>", legend(["math", "a<b"], "line")) == ["math", "a&lt;b"]
