"""Intervals against hand-computed values, scipy's bootstrap and their own coverage."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import bootstrap, ttest_1samp

from src.comparison.records import PromptScores
from src.comparison.statistics import by_prompt, over_prompts, over_seeds, paired_difference


def test_over_seeds_is_the_textbook_interval() -> None:
    """Mean 0.5, standard deviation 0.1, three values: 0.5 +- 4.302653 * 0.1 / sqrt(3)."""
    found = over_seeds([0.4, 0.5, 0.6])
    assert (found.mean, found.number, found.over) == (pytest.approx(0.5), 3, "seeds")
    assert found.low == pytest.approx(0.5 - 0.2484138, abs=1e-6)
    assert found.high == pytest.approx(0.5 + 0.2484138, abs=1e-6)


@given(st.lists(st.floats(-10, 10), min_size=2, max_size=8).filter(lambda v: np.std(v) > 1e-3))
def test_over_seeds_agrees_with_scipy(values: list[float]) -> None:
    found, wanted = over_seeds(values), ttest_1samp(values, 0.0).confidence_interval(0.95)
    assert (found.low, found.high) == (pytest.approx(wanted.low, abs=1e-9), pytest.approx(wanted.high, abs=1e-9))


def test_one_value_has_no_interval() -> None:
    for estimate in (over_seeds([0.25]), over_prompts([0.25])):
        assert (estimate.mean, estimate.low, estimate.high, estimate.over) == (0.25, None, None, "")


def test_over_prompts_agrees_with_scipys_percentile_bootstrap() -> None:
    values = np.random.default_rng(3).uniform(size=60) ** 2
    found = over_prompts(list(values))
    wanted = bootstrap((values,), np.mean, n_resamples=20_000, method="percentile", rng=5).confidence_interval
    assert found.mean == pytest.approx(values.mean())
    assert found.low == pytest.approx(wanted.low, abs=3e-3)
    assert found.high == pytest.approx(wanted.high, abs=3e-3)
    assert found == over_prompts(list(values)), "the same scores give the same interval"


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    """Of 200 samples of 50 coin tosses at least nine intervals in ten hold 0.5."""
    tosses = np.random.default_rng(0).integers(0, 2, (200, 50)).astype(float)
    found = [over_prompts(list(row)) for row in tosses]
    assert np.mean([one.low <= 0.5 <= one.high for one in found]) >= 0.9  # type: ignore[operator]


def test_a_paired_difference_forgets_what_two_runs_share() -> None:
    """Prompts far apart in difficulty, one run better by 0.1 on each: the difference is sharp, the means are not."""
    theirs = {(i, f"p{i}"): i / 20 for i in range(20)}
    ours = {key: value + 0.1 for key, value in theirs.items()}
    found = paired_difference(ours, theirs)
    assert (found.mean, found.low, found.high) == (pytest.approx(0.1), pytest.approx(0.1), pytest.approx(0.1))
    assert found.excludes_zero
    single = over_prompts(list(theirs.values()))
    assert single.high - single.low > 0.2  # type: ignore[operator]
    assert not paired_difference(theirs, dict(theirs)).excludes_zero


def test_other_prompts_cannot_be_paired() -> None:
    with pytest.raises(ValueError, match="not the same prompts"):
        paired_difference({(0, "a"): 1.0}, {(0, "b"): 1.0})


def test_a_prompts_samples_are_one_value_and_what_does_not_apply_is_left_out() -> None:
    first = (
        PromptScores(0, "a", {"reward": 1.0, "count": 0.5}),
        PromptScores(0, "a", {"reward": 0.0, "count": 1.0}),
        PromptScores(1, "b", {"reward": 0.25}),
    )
    second = (PromptScores(1, "b", {"reward": 0.75}),)
    assert by_prompt([first], "reward") == {(0, "a"): 0.5, (1, "b"): 0.25}
    assert by_prompt([first], "count") == {(0, "a"): 0.75}
    assert by_prompt([first, second], "reward") == {(0, "a"): 0.5, (1, "b"): 0.5}
