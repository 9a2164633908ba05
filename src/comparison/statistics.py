"""Estimates with 95 % intervals: over seeds by Student's t, over prompts by the bootstrap."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from statistics import fmean, stdev

import numpy as np

from src.comparison.records import PromptScores

LEVEL = 0.95
RESAMPLES = 10_000
SEED = 1234

PromptKey = tuple[int, str]


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean of `number` values; low and high bound its 95 % interval, None where there is none.

    over: what the interval is taken over, "seeds" or "prompts"; "" without one.
    """

    mean: float
    number: int = 1
    low: float | None = None
    high: float | None = None
    over: str = ""

    @property
    def excludes_zero(self) -> bool:
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)


def over_seeds(values: Sequence[float]) -> Estimate:
    """Mean and two-sided t-interval of one value a seed; a single value has no interval."""
    if len(values) < 2:
        return Estimate(values[0])
    from scipy.stats import t

    mean, number = fmean(values), len(values)
    half = float(t.ppf((1 + LEVEL) / 2, number - 1)) * stdev(values) / sqrt(number)
    return Estimate(mean, number, mean - half, mean + half, "seeds")


def over_prompts(values: Sequence[float]) -> Estimate:
    """Mean and percentile bootstrap interval of one value a prompt (Efron and Tibshirani 1993, chapter 13)."""
    if len(values) < 2:
        return Estimate(values[0])
    array, generator = np.asarray(values, dtype=np.float64), np.random.default_rng(SEED)
    means = np.concatenate(
        [array[generator.integers(0, len(array), (1000, len(array)))].mean(1) for _ in range(RESAMPLES // 1000)]
    )
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(float(array.mean()), len(array), float(low), float(high), "prompts")


def paired_difference(ours: Mapping[PromptKey, float], theirs: Mapping[PromptKey, float]) -> Estimate:
    """`over_prompts` of the differences prompt by prompt; the noise that two runs share on a prompt cancels.

    Raises:
        ValueError: if the prompts are not the same.
    """
    if ours.keys() != theirs.keys():
        raise ValueError("not the same prompts")
    return over_prompts([value - theirs[key] for key, value in ours.items()])


def by_prompt(runs: Iterable[Sequence[PromptScores]], figure: str) -> dict[PromptKey, float]:
    """A figure's mean at each prompt, over its samples and over the runs: a prompt's samples are not independent.

    Prompts that the figure does not apply to are left out.
    """
    found: dict[PromptKey, list[float]] = {}
    for scores in runs:
        for one in scores:
            if figure in one.figures:
                found.setdefault((one.index, one.prompt), []).append(one.figures[figure])
    return {key: fmean(values) for key, values in found.items()}
