"""What one mixer leaves of another's gap to the teacher, as rows of a comparison."""

import math
from pathlib import Path

import pytest

from distill.errors import UserError
from distill.report.compare import compare
from distill.report.compare.goals import told_apart
from distill.report.compare.rows import Row

from .test_compare import lines, table, undrawn, write

__all__ = ["undrawn"]
TWO = "exponential F=128 / hedgehog F=128"


def two(home: Path, first: tuple[float, ...] = (1.1,), second: tuple[float, ...] = (1.21,)) -> list[Path]:
    """A run of each mixer for each ratio on code; on prose both are at 1.1."""
    runs = {"exponential": first, "hedgehog": second}
    return [
        write(home / f"{name}-{seed}", name, seed, ratio={"code": ratio, "prose": 1.1})
        for name, ratios in runs.items()
        for seed, ratio in enumerate(ratios)
    ]


def gap(out: Path, domain: str = "code") -> dict:
    return table(out)[f"exponential F=128 | books-6x512 | {domain}", "gap / hedgehog F=128"]


def test_the_share_is_of_logarithms(tmp_path: Path, undrawn: None) -> None:
    compare(two(tmp_path), tmp_path / "out", gaps=[f"{TWO} <= 0.6"])
    assert gap(tmp_path / "out")["value"] == pytest.approx(0.5)
    assert gap(tmp_path / "out", "prose")["value"] == pytest.approx(1)
    assert gap(tmp_path / "out")["goal"] == "<= 0.6" and gap(tmp_path / "out")["spread"] is None
    shown = Path(f"{tmp_path / 'out'}.md").read_text()
    assert lines(shown, "| exponential F=128 | hedgehog F=128 |") == [
        "| exponential F=128 | hedgehog F=128 | 0.500 | 1.000 |"
    ]
    assert "A share left is one log ratio over another" in shown
    goals = [line.split(" | ")[-1] for line in lines(shown, "| exponential F=128 \\|")]
    assert goals == ["kept |", "missed |"]


def test_the_spread_is_that_of_both(tmp_path: Path, undrawn: None) -> None:
    first, second = (1.10, 1.12), (1.20, 1.26, 1.23)
    compare(two(tmp_path, first, second), tmp_path / "out", gaps=[TWO])
    # By differences: the derivatives with regard to either ratio, times its deviation.
    step, one, other = 1e-6, 1.11, 1.23

    def share(one: float, other: float) -> float:
        return math.log(one) / math.log(other)

    by_one = (share(one + step, other) - share(one - step, other)) / (2 * step) * math.sqrt(2) * 0.01
    by_other = (share(one, other + step) - share(one, other - step)) / (2 * step) * 0.03
    found = gap(tmp_path / "out")
    assert found["spread"] == pytest.approx(math.hypot(by_one, by_other), rel=1e-4)
    assert found["seeds"] == [0, 1]


def test_a_share_is_made_anew_with_what_it_is_made_of(tmp_path: Path, undrawn: None) -> None:
    out = tmp_path / "out"
    runs = two(tmp_path / "old")
    compare(runs, out, gaps=[f"{TWO} <= 0.6"])
    anew = two(tmp_path / "new", first=(1.21,))
    compare([Path(f"{out}.json"), anew[0]], out)
    assert gap(out)["value"] == pytest.approx(1) and gap(out)["goal"] == "<= 0.6"
    # Asked for again without a bound, it keeps the one it had; and the file stays as it was.
    before = Path(f"{out}.json").read_text()
    compare([Path(f"{out}.json")], out, gaps=[TWO])
    assert Path(f"{out}.json").read_text() == before
    compare([Path(f"{out}.json")], out, without=["hedgehog F=128"])
    assert not any(metric.startswith("gap") for _, metric in table(out))


def test_there_is_no_share_of_no_gap(tmp_path: Path, undrawn: None) -> None:
    compare(two(tmp_path, second=(0.99,)), tmp_path / "out", gaps=[f"{TWO} <= 1"])
    assert gap(tmp_path / "out")["value"] is None
    told = lines(Path(f"{tmp_path / 'out'}.md").read_text(), "| exponential F=128 \\|")[0]
    assert told.endswith("| &lt;= 1 | – | – |")


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ("exponential F=128", "give 'MIXER / OTHER' or"),
        ("exponential F=128 / hedgehog", "there is no ratio of 'hedgehog'; did you mean 'hedgehog F=128'"),
        ("Exponential F=128 / hedgehog F=128", "no ratio of 'Exponential F=128'; did you mean 'exponential F=128'"),
        ("exponential F=128 / hedgehog F=128 <= abc", "give 'MIXER / OTHER' or"),
    ],
)
def test_a_pair_that_cannot_be_found_is_refused(tmp_path: Path, undrawn: None, asked: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        compare(two(tmp_path), tmp_path / "out", gaps=[asked])


def test_mixers_of_two_teachers_have_nothing_to_share(tmp_path: Path, undrawn: None) -> None:
    runs = [write(tmp_path / "a", "exponential", teacher="one"), write(tmp_path / "b", "hedgehog", teacher="two")]
    with pytest.raises(UserError, match="no domain has a ratio of both; give runs of one teacher"):
        compare(runs, tmp_path / "out", gaps=[TWO])


@pytest.mark.parametrize(
    ("value", "goal", "told"),
    [
        (1.0202, "<= 1.02", "1.0202"),
        (1.02, "<= 1.02", "1.02"),
        (1.2345, "<= 1.02", "1.23"),
        (12345.6, "<= 12346", "12,345.6"),
        (1.0961, "<= 1.098", "1.096"),
        (1.0951, "<= 1.0953", "1.095"),
        (0.5996, "<= 0.5999", "0.5996"),
        (1.0249, "<= 1.024", "1.025"),
        (None, "<= 1", "–"),
        (1.2345, None, "1.23"),
    ],
)
def test_a_value_is_told_apart_from_its_bound(value: float | None, goal: str | None, told: str) -> None:
    assert told_apart(Row("m F=1 | t | d", "ratio", value, None, [0], None, goal, None, None, None)) == told


def test_nothing_has_no_gap(tmp_path: Path, undrawn: None) -> None:
    (tmp_path / "empty.json").write_text("[]")
    with pytest.raises(UserError, match="there is no ratio of 'exponential F=128'; there is none"):
        compare([tmp_path / "empty.json"], tmp_path / "out", gaps=[TWO])
