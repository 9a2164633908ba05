"""Intervals against hand-computed values, SciPy's on the same draws, and what is known of the population."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from src.intervals import (
    Estimate,
    Figure,
    Resampling,
    difference,
    interval,
    mean,
    over_prompts,
    over_seeds,
    paired_difference,
    resampled_weights,
)


def known(estimate: Estimate | None) -> tuple[float, float, float]:
    """Value and interval, which are there."""
    assert estimate is not None
    assert estimate.low is not None
    assert estimate.high is not None
    return estimate.value, estimate.low, estimate.high


def figure(samples: np.ndarray) -> Figure:
    """Of samples (P, n), all of which have the figure."""
    return Figure(samples.sum(1), np.full(len(samples), float(samples.shape[1])))


def ragged(rng: np.random.Generator, prompts: int) -> Figure:
    """Skewed values, and one to five samples a prompt; in 64ths, whose sums are exact, so that ties are ties."""
    counts = rng.integers(1, 6, prompts).astype(float)
    return Figure(np.round(rng.exponential(1.0, prompts) * 64) / 64 * counts, counts)


@pytest.mark.parametrize("prompts", [5, 40])
@pytest.mark.parametrize("seed", [0, 7])
def test_the_interval_of_a_mean_is_scipys(prompts: int, seed: int) -> None:
    own = ragged(np.random.default_rng(seed), prompts)
    reference = stats.bootstrap(
        (own.sums, own.counts),
        lambda sums, counts, axis: sums.sum(axis) / counts.sum(axis),
        n_resamples=500,
        paired=True,
        vectorized=True,
        method="BCa",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    found = mean(own, Resampling(500, seed))
    assert found is not None
    assert found.value == pytest.approx(own.sums.sum() / own.counts.sum(), rel=1e-12)
    assert (found.low, found.high) == pytest.approx((reference.low, reference.high), rel=1e-9)
    assert (found.number, found.samples) == (prompts, own.counts.sum())


def test_the_interval_of_a_difference_is_scipys() -> None:
    rng = np.random.default_rng(3)
    ours, theirs = ragged(rng, 30), ragged(rng, 30)
    reference = stats.bootstrap(
        (ours.sums, ours.counts, theirs.sums, theirs.counts),
        lambda a, m, b, n, axis: a.sum(axis) / m.sum(axis) - b.sum(axis) / n.sum(axis),
        n_resamples=500,
        paired=True,
        vectorized=True,
        method="BCa",
        rng=np.random.default_rng(1),
    ).confidence_interval
    found = difference(ours, theirs, Resampling(500, 1))
    assert found is not None
    assert (found.low, found.high) == pytest.approx((reference.low, reference.high), rel=1e-9)


def test_ties_are_ties_whatever_order_their_sums_are_rounded_in() -> None:
    """A shift by a constant that is not exact in binary changes no interval but by the shift."""
    own = ragged(np.random.default_rng(0), 5)
    shifted = known(mean(Figure(own.sums + 0.1 * own.counts, own.counts), Resampling()))
    assert shifted == pytest.approx([end + 0.1 for end in known(mean(own, Resampling()))], rel=1e-9)


def test_every_resample_draws_as_many_prompts_as_there_are() -> None:
    weights = resampled_weights(7, Resampling(300, 2))
    assert weights.shape == (300, 7)
    assert (weights.sum(1) == 7).all()
    # A prompt is drawn Binomial(7, 1/7) times: mean 1, variance 6/7; 2100 draws, five standard errors.
    assert weights.mean(0) == pytest.approx(np.ones(7), abs=5 * math.sqrt(6 / 7 / 300))


def test_coverage_of_a_known_mean_and_of_a_known_paired_difference() -> None:
    """Prompts differ by N(0, 1), samples of a prompt by N(0, 0.5), and the second model is better by exactly 0.3.

    1000 populations of 40 prompts. What a bootstrap interval of normal values falls short of 95 % by is Student's
    correction and the n - 1 in the variance: it covers P(|t_39| < 1.96 * sqrt(39 / 40)) = 0.940. Three standard
    errors of 1000 trials are 0.022. Every trial draws resamples of its own: the error that 2000 draws leave in an
    interval's ends would else be the same in all trials and not average out.
    """
    rng, expected = np.random.default_rng(0), 1 - 2 * stats.t.sf(1.96 * math.sqrt(39 / 40), 39)
    hits = np.zeros(2)
    for trial in range(1000):
        prompts = rng.normal(0, 1, (40, 1))
        first, second = (prompts + rng.normal(0, 0.5, (40, 3)) + shift for shift in (0.0, 0.3))
        of_mean = mean(figure(first), Resampling(2000, trial))
        paired = difference(figure(second), figure(first), Resampling(2000, trial))
        for place, (estimate, truth) in enumerate(((of_mean, 0.0), (paired, 0.3))):
            _, low, high = known(estimate)
            hits[place] += low <= truth <= high
    assert hits / 1000 == pytest.approx([expected, expected], abs=0.022)


def test_prompts_not_samples_are_the_unit() -> None:
    """A hundred equal samples of a prompt say as much as one."""
    rng = np.random.default_rng(1)
    one = rng.normal(size=(20, 1))
    few, many = mean(figure(one), Resampling()), mean(figure(one.repeat(100, 1)), Resampling())
    assert known(many) == pytest.approx(known(few))


def test_pairing_takes_what_prompts_share_out_of_the_difference() -> None:
    rng = np.random.default_rng(2)
    prompts = rng.normal(0, 10, (50, 1))
    found = difference(figure(prompts + 1), figure(prompts), Resampling())
    assert found is not None
    assert (found.value, found.low, found.high) == pytest.approx((1.0, 1.0, 1.0), abs=1e-12)
    assert found.excludes_zero


def test_a_model_against_itself_differs_by_nothing() -> None:
    own = ragged(np.random.default_rng(0), 12)
    found = difference(own, own, Resampling())
    assert found is not None
    assert (found.value, found.low, found.high) == (0.0, 0.0, 0.0)
    assert not found.excludes_zero


def test_prompts_without_the_figure_are_left_out() -> None:
    own = Figure(np.array([1.0, 0.0, 4.0]), np.array([1.0, 0.0, 2.0]))
    other = Figure(np.array([0.0, 5.0, 2.0]), np.array([0.0, 1.0, 2.0]))
    found, paired = mean(own, Resampling()), difference(own, other, Resampling())
    assert found is not None
    assert paired is not None
    assert (found.value, found.number, found.samples) == (5 / 3, 2, 3)
    # Only the third prompt has both, and one prompt cannot be resampled.
    assert (paired.value, paired.low, paired.high, paired.number) == (1.0, None, None, 1)
    nothing = Figure(np.zeros(3), np.zeros(3))
    assert mean(nothing, Resampling()) is None
    assert difference(own, nothing, Resampling()) is None


def test_figures_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="sums"):
        Figure(np.zeros(3), np.zeros(2))
    with pytest.raises(ValueError, match="3 and 2 prompts"):
        difference(Figure(np.ones(3), np.ones(3)), Figure(np.ones(2), np.ones(2)), Resampling())
    with pytest.raises(ValueError, match="1 units"):
        interval(lambda w: w.sum(1), 1, Resampling())


def test_over_seeds_is_the_textbook_interval() -> None:
    """Mean 0.5, standard deviation 0.1, three values: 0.5 +- 4.302653 * 0.1 / sqrt(3)."""
    found = over_seeds([0.4, 0.5, 0.6])
    assert (found.value, found.number, found.over) == (pytest.approx(0.5), 3, "seeds")
    assert found.low == pytest.approx(0.5 - 0.2484138, abs=1e-6)
    assert found.high == pytest.approx(0.5 + 0.2484138, abs=1e-6)


@given(st.lists(st.floats(-10, 10), min_size=2, max_size=8).filter(lambda v: np.std(v) > 1e-3))
def test_over_seeds_agrees_with_scipy(values: list[float]) -> None:
    found, wanted = over_seeds(values), stats.ttest_1samp(values, 0.0).confidence_interval(0.95)
    assert (found.low, found.high) == (pytest.approx(wanted.low, abs=1e-9), pytest.approx(wanted.high, abs=1e-9))


def test_one_value_has_no_interval() -> None:
    for estimate in (over_seeds([0.25]), over_prompts([0.25])):
        assert (estimate.value, estimate.low, estimate.high, estimate.over) == (0.25, None, None, "")


def test_over_prompts_is_scipys_interval_of_one_value_a_prompt() -> None:
    values = np.random.default_rng(3).uniform(size=60) ** 2
    found = over_prompts(list(values), Resampling(500, 5))
    wanted = stats.bootstrap(
        (values,), np.mean, n_resamples=500, method="BCa", rng=np.random.default_rng(5)
    ).confidence_interval
    assert (found.number, found.over) == (60, "prompts")
    assert found.value == pytest.approx(values.mean(), rel=1e-12)
    assert (found.low, found.high) == pytest.approx((wanted.low, wanted.high), rel=1e-9)


def test_one_value_a_prompt_or_its_samples_give_the_same_interval() -> None:
    """`src.compare` reads a mean a prompt, `src.evaluate` sums over samples: with equally many they must agree."""
    samples = np.random.default_rng(4).integers(0, 2, (30, 4)).astype(float)
    other = np.random.default_rng(5).integers(0, 2, (30, 4)).astype(float)
    by_mean = over_prompts(list(samples.mean(1)))
    assert known(by_mean) == pytest.approx(known(mean(figure(samples), Resampling())), rel=1e-12)
    ours, theirs = (dict(enumerate(each.mean(1))) for each in (samples, other))
    paired = paired_difference(ours, theirs)
    assert known(paired) == pytest.approx(known(difference(figure(samples), figure(other), Resampling())), rel=1e-12)


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
    assert (found.value, found.low, found.high) == (pytest.approx(0.1), pytest.approx(0.1), pytest.approx(0.1))
    assert found.excludes_zero
    single = over_prompts(list(theirs.values()))
    assert single.high - single.low > 0.2  # type: ignore[operator]
    assert not paired_difference(theirs, dict(theirs)).excludes_zero


def test_other_prompts_cannot_be_paired() -> None:
    with pytest.raises(ValueError, match="not the same prompts"):
        paired_difference({(0, "a"): 1.0}, {(0, "b"): 1.0})
