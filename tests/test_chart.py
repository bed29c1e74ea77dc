from __future__ import annotations

import math
import re
from itertools import pairwise
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fulmen.chart import Series, downsample, line_chart, nice_ticks, smooth, stacked_bar

numbers = st.floats(-1e12, 1e12)


@given(numbers, st.floats(1e-6, 1e12))
def test_ticks_are_inside_and_evenly_apart(low, span):
    high = low + span
    ticks = nice_ticks(low, high)
    assert 1 <= len(ticks) <= 12
    slack = 1e-6 * max(abs(low), abs(high), span)
    assert all(low - slack <= tick <= high + slack for tick in ticks)
    gaps = [b - a for a, b in pairwise(ticks)]
    assert all(gap == pytest.approx(gaps[0], rel=1e-3, abs=slack) for gap in gaps)


def test_ticks_are_round():
    assert nice_ticks(0, 1) == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1.0])
    assert nice_ticks(0, 97, 5) == [0, 20, 40, 60, 80]


@given(st.lists(numbers, min_size=2, max_size=400), st.integers(1, 40))
def test_downsampling_keeps_the_ends_and_the_extremes(values, buckets):
    points = [(float(index), value) for index, value in enumerate(values)]
    kept = downsample(points, buckets)
    assert len(kept) <= 2 * buckets + 2
    assert set(kept) <= set(points)
    assert kept == sorted(kept, key=lambda point: point[0])
    assert (kept[0], kept[-1]) == (points[0], points[-1])
    assert max(y for _, y in kept) == max(values)
    assert min(y for _, y in kept) == min(values)


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=300))
def test_smoothing_stays_within_the_values(values):
    points = [(float(index), value) for index, value in enumerate(values)]
    smoothed = smooth(points)
    assert [x for x, _ in smoothed] == [x for x, _ in points]
    assert all(min(values) - 1e-3 <= y <= max(values) + 1e-3 for _, y in smoothed)


def numbers_in(markup: str) -> list[float]:
    element = ElementTree.fromstring(markup)
    coordinates = []
    for node in element.iter():
        for name in ("x", "y", "x1", "x2", "y1", "y2", "cx", "cy"):
            if name in node.attrib:
                coordinates.append(float(node.attrib[name]))
        if node.tag == "path":
            coordinates += map(float, re.findall(r"-?\d+\.?\d*", node.attrib["d"].split("l")[0]))
    return coordinates


@pytest.mark.parametrize(
    "values",
    [
        [],
        [1.0],
        [0.0, 0.0, 0.0],
        [math.nan, math.nan],
        [1.0, math.inf, 2.0, math.nan],
        [-3e-5, 2e-5],
        [1e-9, 1e9],
        [123456.0, 123457.0],
        [float(index % 7) for index in range(100_000)],
    ],
)
def test_charts_of_awkward_data_are_small_and_stay_inside(values):
    markup = line_chart([Series("m", [float(index) for index in range(len(values))], values)], "title")
    assert len(markup) < 120_000
    assert all(0 <= coordinate <= 520 for coordinate in numbers_in(markup))
    assert "nan" not in markup.replace("not finite", "")


def test_values_that_are_not_finite_are_marked():
    markup = line_chart([Series("m", [0, 1, 2, 3], [1.0, math.nan, 2.0, 3.0])], "title")
    assert markup.count('class="missing"') == 1
    assert "m is not finite at 1" in markup


def test_a_wide_range_of_positive_values_has_a_log_scale():
    assert "log scale" in line_chart([Series("m", [0, 1], [1e-4, 1e3])], "title")
    assert "log scale" not in line_chart([Series("m", [0, 1], [-1.0, 1e3])], "title")


def test_names_are_escaped():
    markup = line_chart([Series('<b>"&', [0, 1], [0.0, math.nan])], '<i>"')
    ElementTree.fromstring(markup)
    assert "<b>" not in markup


def test_parts_of_a_bar_fill_it():
    element = ElementTree.fromstring(stacked_bar([("a", 1.0), ("b", 3.0), ("c", 0.0)], "times"))
    widths = [float(node.attrib["width"]) for node in element]
    assert widths == [250.0, 750.0, 0.0]
    assert [node[0].text for node in element] == ["a: 25.0%", "b: 75.0%", "c: 0.0%"]
