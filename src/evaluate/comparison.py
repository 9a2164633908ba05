"""Every model's figures with their intervals, over all prompts and by kind, and every pair's differences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from src.intervals import Estimate, Figure, Resampling, difference, mean

ALL = "all prompts"
Estimates = dict[str, dict[str, Estimate]]  # by kind of prompt (ALL first), then by figure


@dataclass(frozen=True, slots=True)
class Difference:
    """The model `of` minus the model `to`, on the same prompts and noise."""

    of: str
    to: str
    estimates: Estimates


@dataclass(frozen=True, slots=True)
class Comparison:
    """`means` by model, `differences` of every pair (the later minus the earlier), `kinds` with their prompts."""

    kinds: dict[str, int]
    means: dict[str, Estimates]
    differences: tuple[Difference, ...]

    def figures(self) -> list[str]:
        """Names of all figures any model has, in order of appearance."""
        return list(dict.fromkeys(name for estimates in self.means.values() for name in estimates[ALL]))

    def as_json(self) -> dict[str, Any]:
        """Plain Python for a JSON file."""

        def plain(estimates: Estimates) -> dict[str, Any]:
            return {kind: {name: _as_json(e) for name, e in row.items()} for kind, row in estimates.items()}

        return {
            "kinds": self.kinds,
            "means": {name: plain(estimates) for name, estimates in self.means.items()},
            "differences": [{"of": d.of, "to": d.to, "figures": plain(d.estimates)} for d in self.differences],
        }


def compare(figures: Mapping[str, Mapping[str, Figure]], kinds: Sequence[str], resampling: Resampling) -> Comparison:
    """Compare models.

    figures: by model, then by name, all of the same P prompts. kinds: each prompt's kind, (P,).
    """
    places = {ALL: np.ones(len(kinds), dtype=bool)}
    places |= {kind: np.array([own == kind for own in kinds]) for kind in sorted(set(kinds))}
    means = {
        model: {
            kind: {
                name: estimate
                for name, figure in own.items()
                if (estimate := mean(figure.rows(rows), resampling)) is not None
            }
            for kind, rows in places.items()
        }
        for model, own in figures.items()
    }
    differences = tuple(
        Difference(later, earlier, _differences(figures[later], figures[earlier], places, resampling))
        for earlier, later in combinations(figures, 2)
    )
    return Comparison({kind: int(rows.sum()) for kind, rows in places.items()}, means, differences)


def _differences(
    ours: Mapping[str, Figure], theirs: Mapping[str, Figure], places: Mapping[str, Any], resampling: Resampling
) -> Estimates:
    return {
        kind: {
            name: estimate
            for name, figure in ours.items()
            if name in theirs
            and (estimate := difference(figure.rows(rows), theirs[name].rows(rows), resampling)) is not None
        }
        for kind, rows in places.items()
    }


def _as_json(estimate: Estimate) -> dict[str, float | int | None]:
    prompts = {"prompts": estimate.number, "samples": estimate.samples}
    return {"value": estimate.value, "low": estimate.low, "high": estimate.high, **prompts}
