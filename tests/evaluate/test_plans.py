"""Statistics of plans, counted by hand."""

from __future__ import annotations

import pytest

from src.evaluate.plans import distinct, repeated, same


def test_distinct_counts_ngrams_over_all_plans() -> None:
    plans = ["a b a", "b a"]
    assert distinct(plans, 1) == 2 / 5
    # ab, ba | ba
    assert distinct(plans, 2) == 2 / 3
    assert distinct(plans, 3) == 1.0
    assert distinct(plans, 4) is None
    assert distinct(["", "  "], 1) is None


def test_no_ngram_crosses_from_one_plan_into_the_next() -> None:
    assert distinct(["a b", "c d"], 2) == 1.0
    assert distinct(["a", "b"], 2) is None


def test_repeated_is_the_share_of_ngrams_seen_before() -> None:
    # abcd, bcda, cdab, dabc, abcd
    assert repeated("a b c d a b c d") == pytest.approx(1 / 5)
    assert repeated("a b c d") == 0.0
    assert repeated("a b c") is None
    assert repeated("x x x x x", 2) == 3 / 4


def test_same_counts_pairs() -> None:
    assert same(["a", "a", "b"]) == pytest.approx(1 / 3)
    assert same(["a", "a"]) == 1.0
    assert same(["a"]) is None
