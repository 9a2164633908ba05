"""Means by kind and differences of every pair, and where they end up."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from src.evaluation.comparison import ALL, Comparison, compare
from src.evaluation.figures import figures_of
from src.evaluation.forest import Line, forest, written
from src.evaluation.table import write_samples
from src.intervals import Estimate, Resampling
from tests.evaluation.pieces import drawn

REWARDS = {"base": [0.0, 0.5, 1.0], "a": [0.5, 0.5, 1.0], "b": [1.0, 1.0, 0.25]}
KINDS = ["one", "one", "two"]


def compared() -> Comparison:
    models = {
        name: figures_of([drawn(i, 0, reward, kind=KINDS[i]) for i, reward in enumerate(rewards)])
        for name, rewards in REWARDS.items()
    }
    return compare(models, KINDS, Resampling(200))


def test_means_and_differences_over_all_and_by_kind() -> None:
    found = compared()
    assert found.kinds == {ALL: 3, "one": 2, "two": 1}
    assert found.means["b"][ALL]["reward"].value == pytest.approx(0.75)
    assert found.means["a"]["one"]["reward"].value == 0.5
    two = found.means["a"]["two"]["reward"]
    assert (two.value, two.low, two.high, two.number) == (1.0, None, None, 1)
    values = {(d.of, d.to): d.estimates["one"]["reward"].value for d in found.differences}
    assert values == {("a", "base"): 0.25, ("b", "base"): 0.75, ("b", "a"): 0.5}


def test_json_holds_it_all_and_no_number_that_json_does_not_know() -> None:
    found = compared()
    plain = json.loads(json.dumps(found.as_json(), allow_nan=False))
    own = found.means["a"][ALL]["reward"]
    assert plain["means"]["a"][ALL]["reward"] == {
        "value": own.value,
        "low": own.low,
        "high": own.high,
        "prompts": 3,
        "samples": 3,
    }
    assert [(d["of"], d["to"]) for d in plain["differences"]] == [("a", "base"), ("b", "base"), ("b", "a")]


def test_the_csv_keeps_hard_texts_and_leaves_cells_empty(tmp_path: Path) -> None:
    hard = 'a "b", c\nd; ü 圆'
    write_samples(
        tmp_path / "s.csv",
        {"m": [drawn(0, 0, 0.5, hard, reward=3.0), drawn(0, 1, None, ended=False)]},
    )
    with (tmp_path / "s.csv").open(encoding="utf-8", newline="") as file:
        first, second = csv.DictReader(file)
    assert (first["plan"], first["reward"], first["score/judge"], first["detail/reward"]) == (hard, "0.5", "0.5", "3.0")
    assert (second["reward"], second["score/judge"], second["plan_ended"], second["sample"]) == ("", "", "0", "1")


def test_a_plot_puts_estimate_and_interval_where_they_belong() -> None:
    """Left to right: low end of the interval, estimate, high end; and the mark of zero where it is."""
    svg = forest("t", [("k", [Line("m <1>", Estimate(0.5, 0.25, 1.0, 9), 0)])], zero=True)
    place = {name: float(svg.split(f'{name}="')[1].split('"')[0]) for name in ("cx",)}
    bar = svg.split("stroke-width")[0].rsplit("<line", 1)[1]
    low, high = (float(bar.split(f'{end}="')[1].split('"')[0]) for end in ("x1", "x2"))
    mark = float(svg.split('class="zero"')[0].rsplit('x1="', 1)[1].split('"')[0])
    # 0, 0.25, 0.5 and 1 on one linear axis.
    assert [(x - mark) / (high - mark) for x in (low, place["cx"], high)] == pytest.approx([0.25, 0.5, 1.0], abs=1e-3)
    assert "m &lt;1&gt;" in svg
    assert forest("t", [("k", [])]) == ""


def test_a_long_label_ends_before_the_plot_begins() -> None:
    """A pair of runs by their default names, drawn in 12 px text: 6.8 px a letter (headless Chromium)."""
    label = "bicot_lora-20261124-090308 \u2212 bicot_lora-20261124-090236"
    svg = forest("t", [("k", [Line(label, Estimate(0.0, -1.0, 1.0, 9), 0)])])
    left = min(float(part.split('"')[0]) for part in svg.split('class="axis"')[0].split('x1="')[1:])
    assert left > 14 + 6.8 * len(label)
    width = float(svg.split('viewBox="0 0 ')[1].split()[0])
    assert max(float(part.split('"')[0]) for part in svg.split('x2="')[1:]) < width


def test_numbers_as_text() -> None:
    assert written(Estimate(0.5, 0.25, 0.75, 9)) == "0.500 [0.250, 0.750]"
    assert written(Estimate(-0.0001, -0.0002, 0.0, 9)) == "0.000 [0.000, 0.000]"
    assert written(Estimate(1.0)) == "1.000"
