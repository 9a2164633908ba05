"""Means with 95 % intervals: over seeds by Student's t, over prompts by the bootstrap. Every command takes these.

Prompts are the unit that is resampled. The samples of one prompt are not independent of each other, so they stay
together: a resample draws prompts, with all their samples (a cluster bootstrap). Of two models the same prompts are
drawn, which makes differences paired.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import sqrt
from statistics import NormalDist, fmean, stdev
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True)
class Resampling:
    """How many resamples are drawn, and the seed they are drawn from."""

    resamples: int = 2000
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Figure:
    """One figure prompt by prompt: `sums` (P,) over the samples that have it, and `counts` (P,) of those samples.

    A prompt without any has count 0.
    """

    sums: Array
    counts: Array

    def __post_init__(self) -> None:
        if self.sums.ndim != 1 or self.sums.shape != self.counts.shape:
            raise ValueError(f"Figure: sums {self.sums.shape} and counts {self.counts.shape}, expected equal, (P,)")

    def rows(self, index: NDArray[np.intp] | NDArray[np.bool_]) -> Figure:
        """The chosen prompts."""
        return Figure(self.sums[index], self.counts[index])

    @property
    def has(self) -> NDArray[np.bool_]:
        """Which prompts (P,) have the figure."""
        return self.counts > 0


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean or a difference of means, its 95 % interval, and what it rests on.

    number: of the units that the interval is taken over, which `over` names ("seeds" or "prompts"; "" without an
    interval). samples: of how many pictures in all. `low` and `high` are None for fewer than two units.
    """

    value: float
    low: float | None = None
    high: float | None = None
    number: int = 1
    over: str = ""
    samples: int = 1

    @property
    def excludes_zero(self) -> bool:
        """Whether the whole interval lies on one side of 0."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)


def over_seeds(values: Sequence[float]) -> Estimate:
    """Mean and two-sided t-interval of one value a seed; a single value has no interval."""
    if len(values) < 2:
        return Estimate(values[0])
    from scipy.stats import t

    average, number = fmean(values), len(values)
    half = float(t.ppf((1 + CONFIDENCE) / 2, number - 1)) * stdev(values) / sqrt(number)
    return Estimate(average, average - half, average + half, number, "seeds", number)


def over_prompts(values: Sequence[float], resampling: Resampling = Resampling()) -> Estimate:
    """Mean and bootstrap interval of one value a prompt; a single value has no interval."""
    sums = np.asarray(values, dtype=np.float64)
    found = mean(Figure(sums, np.ones_like(sums)), resampling)
    assert found is not None
    return found


def paired_difference(
    ours: Mapping[Any, float], theirs: Mapping[Any, float], resampling: Resampling = Resampling()
) -> Estimate:
    """`over_prompts` of the differences prompt by prompt; the noise that two runs share on a prompt cancels.

    Raises:
        ValueError: if the prompts are not the same.
    """
    if ours.keys() != theirs.keys():
        raise ValueError("not the same prompts")
    return over_prompts([value - theirs[key] for key, value in ours.items()], resampling)


def mean(figure: Figure, resampling: Resampling) -> Estimate | None:
    """The mean over all samples that have the figure; None where none has."""
    kept = figure.rows(figure.has)
    if not kept.sums.size:
        return None
    return _estimate(lambda w: (w @ kept.sums) / (w @ kept.counts), kept.sums.size, kept.counts.sum(), resampling)


def difference(figure: Figure, baseline: Figure, resampling: Resampling) -> Estimate | None:
    """Mean of `figure` less mean of `baseline` over the prompts that have both; None where none has.

    Raises ValueError unless both are of the same prompts.
    """
    if figure.sums.shape != baseline.sums.shape:
        raise ValueError(f"difference: {figure.sums.size} and {baseline.sums.size} prompts, expected the same")
    both = figure.has & baseline.has
    ours, theirs = figure.rows(both), baseline.rows(both)
    if not ours.sums.size:
        return None

    def statistic(w: Array) -> Array:
        return (w @ ours.sums) / (w @ ours.counts) - (w @ theirs.sums) / (w @ theirs.counts)

    return _estimate(statistic, ours.sums.size, ours.counts.sum(), resampling)


def interval(statistic: Callable[[Array], Array], units: int, resampling: Resampling) -> tuple[float, float]:
    """The bias-corrected and accelerated (BCa) 95 % interval of a statistic of weighted units.

    statistic: of weights (R, units), how often each unit is drawn, gives (R,). The acceleration comes from the
    jackknife. Where all resamples lie on one side of the estimate (very few units) the bias is not defined and the
    percentile interval is given. Efron 1987, "Better bootstrap confidence intervals", eq. 6.6 and 6.8.

    Raises ValueError for fewer than two units.
    """
    if units < 2:
        raise ValueError(f"interval: {units} units, expected at least two")
    drawn = statistic(resampled_weights(units, resampling))
    observed = float(statistic(np.ones((1, units)))[0])
    tails = np.array([(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    if np.ptp(drawn) > 1e-12 * np.abs(drawn).max():
        tails = _corrected(tails, drawn, observed, statistic(1 - np.eye(units)))
    low, high = np.quantile(drawn, tails)
    return float(low), float(high)


@lru_cache(maxsize=4)
def resampled_weights(units: int, resampling: Resampling) -> Array:
    """How often each unit is drawn in each resample, (R, units); every row adds up to `units`."""
    draws = np.random.default_rng(resampling.seed).integers(0, units, (resampling.resamples, units))
    flat = draws + units * np.arange(resampling.resamples)[:, None]
    counts = np.bincount(flat.ravel(), minlength=resampling.resamples * units)
    return counts.reshape(resampling.resamples, units).astype(np.float64)


def _corrected(tails: Array, drawn: Array, observed: float, left_out: Array) -> Array:
    """The quantiles that stand for `tails`, corrected for bias and skewness."""
    normal = NormalDist()
    # Half of the ties count as below: of few prompts or discrete figures many resamples hit the estimate itself,
    # up to the rounding of sums in another order.
    tie = 1e-12 * float(np.abs(drawn).max())
    below = float(((drawn < observed - tie).mean() + (drawn <= observed + tie).mean()) / 2)
    if not 0 < below < 1:
        return tails
    spread = left_out.mean() - left_out
    square = float((spread**2).sum())
    acceleration = float((spread**3).sum()) / (6 * square**1.5) if square > 0 else 0.0
    bias = normal.inv_cdf(below)
    shifted = [bias + normal.inv_cdf(float(tail)) for tail in tails]
    return np.array([normal.cdf(bias + shift / (1 - acceleration * shift)) for shift in shifted])


def _estimate(statistic: Callable[[Array], Array], units: int, samples: float, resampling: Resampling) -> Estimate:
    value = float(statistic(np.ones((1, units)))[0])
    low, high = interval(statistic, units, resampling) if units > 1 else (None, None)
    return Estimate(value, low, high, units, "" if low is None else "prompts", int(samples))
