"""Figures prompt by prompt, worked out by hand."""

from __future__ import annotations

import pytest

from src.evaluate.figures import MEANINGS, figures_of
from tests.evaluate.pieces import drawn


def test_every_figure_of_two_prompts() -> None:
    found = figures_of(
        [
            drawn(4, 0, 0.25, "a b c d", all_correct=0.0),
            drawn(4, 1, 0.75, "a b", embedding=(0.0, 1.0), ended=False, all_correct=1.0, count=0.5),
            drawn(9, 0, None, "x"),
            drawn(9, 1, None, "x"),
        ]
    )
    wanted = {
        "reward": ([1.0, 0.0], [2, 0]),
        "judge": ([1.0, 0.0], [2, 0]),
        "all_correct": ([1.0, 0.0], [2, 0]),
        "count": ([0.5, 0.0], [1, 0]),
        "plan/ended": ([1.0, 2.0], [2, 2]),
        "plan/tokens": ([6.0, 2.0], [2, 2]),
        "plan/repeated": ([0.0, 0.0], [1, 0]),
        "plan/distinct_1": ([4 / 6, 1 / 2], [1, 1]),
        "plan/distinct_2": ([3 / 4, 0.0], [1, 0]),  # ab bc cd | ab
        "plan/same": ([0.0, 1.0], [1, 1]),
        "diversity/vendi": ([2.0, 1.0], [1, 1]),
        "diversity/distance": ([1.0, 0.0], [1, 1]),
    }
    assert found.keys() == wanted.keys()
    assert wanted.keys() >= MEANINGS.keys()
    for name, (sums, counts) in wanted.items():
        assert found[name].sums == pytest.approx(sums), name
        assert found[name].counts.tolist() == counts, name


def test_a_single_sample_has_nothing_to_be_compared_with() -> None:
    assert not {"diversity/vendi", "plan/same", "plan/distinct_1"} & figures_of([drawn(0, 0, 1.0)]).keys()
