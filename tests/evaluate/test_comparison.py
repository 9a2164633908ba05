"""Means by kind and differences of every pair, and where they end up."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from src.evaluate.comparison import ALL, Comparison, compare
from src.evaluate.figures import figures_of
from src.evaluate.forest import Line, forest, svg, written
from src.evaluate.table import write_samples
from src.intervals import Estimate, Resampling
from tests.evaluate.pieces import drawn

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
    """Under the group's name a bar over the interval with a dot at the estimate; the figures as text; 0 marked."""
    figure = forest("t", [("k", [Line("m <1>", Estimate(0.5, 0.25, 1.0, 9), 0)]), ("empty", [])], zero=True)
    assert figure is not None
    (axes,) = figure.axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["k", "m <1>"]
    (bar,) = axes.collections
    assert bar.get_segments()[0].tolist() == [[0.25, 1.0], [1.0, 1.0]]
    dot, mark = axes.lines
    assert (list(dot.get_xdata()), list(dot.get_ydata())) == ([0.5], [1])
    assert list(mark.get_xdata()) == [0, 0]
    assert [text.get_text() for text in axes.texts] == ["0.500 [0.250, 1.000]"]
    page = svg(figure)
    assert page.startswith("<svg")
    assert "m &lt;1&gt;" in page
    assert forest("t", [("k", [])]) is None


def test_a_long_label_ends_before_the_plot_begins() -> None:
    """A pair of runs by their default names; and the figures at the right stay on the canvas."""
    label = "bicot_lora-20261124-090308 \u2212 bicot_lora-20261124-090236"
    figure = forest("t", [("k", [Line(label, Estimate(0.0, -1.0, 1.0, 9), 0)])])
    assert figure is not None
    FigureCanvasAgg(figure).draw()
    (axes,) = figure.axes
    labels = [text.get_window_extent() for text in axes.get_yticklabels()]
    assert min(box.x0 for box in labels) >= 0
    assert max(box.x1 for box in labels) <= axes.get_window_extent().x0
    assert axes.texts[0].get_window_extent().x1 <= figure.bbox.x1


def test_numbers_as_text() -> None:
    assert written(Estimate(0.5, 0.25, 0.75, 9)) == "0.500 [0.250, 0.750]"
    assert written(Estimate(-0.0001, -0.0002, 0.0, 9)) == "0.000 [0.000, 0.000]"
    assert written(Estimate(1.0)) == "1.000"
