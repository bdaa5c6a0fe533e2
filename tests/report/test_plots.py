"""Pictures of numbers that are absent, extreme or not text-safe."""

import re

import numpy as np
import pytest

from distill.report.plots import Line, curves, heat_map, map_pair, staircase


def written(svg: str) -> list[str]:
    return re.findall(r"<text[^>]*>([^<]*)</text>", svg)


def test_a_staircase_without_one_step_and_with_a_name_that_looks_like_a_formula() -> None:
    svg = staircase(["teacher", "stage 1", "student"], {"$x$ & <b>": [1.0, None, 2.5]}, "ratio", "told")
    assert {"$x$ &amp; &lt;b&gt;", "teacher", "ratio", "2×"} <= set(written(svg))


@pytest.mark.parametrize("high", [1.02, 8.0, 3e4])
def test_a_logarithmic_axis_has_a_few_ticks_at_any_range(high: float) -> None:
    ticks = [text for text in written(staircase(["a", "b"], {"x": [1.0, high]}, "ratio", "told")) if "×" in text]
    assert 2 <= len(ticks) <= 8


def test_a_curve_leaves_out_what_has_no_logarithm() -> None:
    svg = curves([Line("loss", np.arange(4.0), np.array([1.0, 0.0, np.nan, -1.0]))], "tokens", "nats", "told")
    assert {"tokens", "nats"} <= set(written(svg)) and "nan" not in svg


def test_a_heat_map_writes_its_values_and_leaves_gaps_empty() -> None:
    svg = heat_map(np.array([[0.25, np.nan], [1.5, 0.0]]), 1.5, ("layer", "head"), "nats", "told")
    assert {"0.25", "1.50", "0.00", "layer", "head", "nats"} <= set(written(svg)) and "nan" not in svg


def test_a_heat_map_of_many_heads_or_of_zeros_can_be_drawn() -> None:
    assert len(written(heat_map(np.full((48, 32), 0.5), 0.5, ("layer", "head"), "nats", "told"))) < 50
    assert heat_map(np.zeros((1, 1)), 0.0, ("layer", "head"), "nats", "told").startswith("<svg")


def test_attention_maps_may_be_negative_or_broken() -> None:
    teacher = np.tril(np.full((3, 3), 0.5, dtype=np.float32))
    student = np.where(np.eye(3) > 0, -0.2, teacher)
    student[2, 0] = np.nan
    svg = map_pair(teacher, student, ("teacher", "student"), "told")
    assert {"teacher", "student", "key position", "query position", "weight"} <= set(written(svg))
    assert svg.count("<image") >= 2
