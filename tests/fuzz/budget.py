"""How many inputs a fuzz test tries, and the count of what came of them."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, seed, settings
from hypothesis.strategies import SearchStrategy

# With this set, rounds of other seeds are tried until so many seconds are over, and their number is printed.
SECONDS = "FUZZ_SECONDS"
ROUND = 1000
MORE = [pytest.param(None, id="few"), pytest.param(ROUND, id="many", marks=pytest.mark.slow)]


def fuzz(
    name: str,
    inputs: SearchStrategy[Any],
    check: Callable[[Any], str],
    few: int,
    many: int | None,
    share: float = 1.0,
) -> None:
    """Call `check` with `few` inputs, or `many`; it names what came of one, and fails for what must not come.

    Outcomes are counted, so that a test that only ever meets one of them is seen. share: of the seconds that
    FUZZ_SECONDS gives.
    """
    seconds = share * float(os.environ.get(SECONDS, 0))
    outcomes: Counter[str] = Counter()
    start, number = time.monotonic(), 0
    while True:
        examples = 3 * few if seconds else many or few
        # Fixed seeds in the suite: it says the same of the same code.
        one = _round(number if seconds else 0, examples, inputs, lambda value: outcomes.update([check(value)]))
        one()
        number += 1
        if time.monotonic() - start >= seconds:
            break
    if seconds:
        tried, took = sum(outcomes.values()), time.monotonic() - start
        print(
            f"\nfuzz {name}: {tried} inputs in {took:.0f} s, {number} seeds: {dict(outcomes.most_common())}", flush=True
        )
    assert len(outcomes) > 1, f"every input came to the same: {outcomes}"


def _round(number: int, examples: int, inputs: SearchStrategy[Any], check: Callable[[Any], None]) -> Callable[[], None]:
    @seed(number)
    @settings(max_examples=examples, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(inputs)
    def one(value: Any) -> None:
        check(value)

    return one
