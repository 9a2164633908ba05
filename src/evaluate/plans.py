"""Statistics of plans as texts; words are what white space separates."""

from __future__ import annotations

from collections.abc import Sequence

REPEATED_WORDS = 4


def distinct(plans: Sequence[str], n: int) -> float | None:
    """Distinct n-grams of words over all n-grams of the plans together, in (0, 1]; None where there is no n-gram.

    distinct-n of Li et al., arXiv 1510.03055.
    """
    grams = [gram for plan in plans for gram in _ngrams(plan, n)]
    return len(set(grams)) / len(grams) if grams else None


def repeated(plan: str, n: int = REPEATED_WORDS) -> float | None:
    """The share of a plan's n-grams of words that occurred earlier in it, in [0, 1); None for a plan shorter than n.

    seq-rep-n of Welleck et al., arXiv 1908.04319, eq. 10.
    """
    share = distinct([plan], n)
    return None if share is None else 1 - share


def same(plans: Sequence[str]) -> float | None:
    """The share of pairs of plans that are the same text; None for a single plan."""
    pairs = [(a, b) for place, a in enumerate(plans) for b in plans[place + 1 :]]
    return sum(a == b for a, b in pairs) / len(pairs) if pairs else None


def _ngrams(plan: str, n: int) -> list[tuple[str, ...]]:
    words = plan.split()
    return [tuple(words[start : start + n]) for start in range(len(words) - n + 1)]
