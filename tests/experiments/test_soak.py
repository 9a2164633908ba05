"""The soak's arithmetic: which step a look at the process belongs to, and how fast a column grows."""

from __future__ import annotations

from pathlib import Path

import pytest

from experiments.soak.soak import WARM_UP, growth, step_seconds, steps_in, with_steps


def test_steps_lie_between_the_moments_at_which_the_file_grew() -> None:
    on_disk = [0, 0, 50, 50, 50, 150, 150]
    rows = [{"seconds": 5.0 * i, "steps_on_disk": float(steps)} for i, steps in enumerate(on_disk)]
    found = with_steps(rows)
    assert [row["seconds"] for row in found] == [10, 15, 20, 25], "not before the first growth, nor after the last"
    assert [row["step"] for row in found] == pytest.approx([50, 50 + 100 / 3, 50 + 200 / 3, 150])


def test_growth_leaves_out_the_warm_up() -> None:
    early = [{"step": float(step), "x": 1000.0} for step in range(0, WARM_UP, 10)]
    late = [{"step": float(step), "x": 7 + 0.02 * step} for step in range(WARM_UP, 2000, 10)]
    assert growth(early + late, "x") == pytest.approx(2.0)


def test_medians_and_the_last_step_of_a_file(tmp_path: Path) -> None:
    metrics = tmp_path / "metrics.csv"
    assert steps_in(metrics) == 0
    seconds = [*[1.0] * 19, 50.0, 2.0, 4.0]
    lines = ["step,seconds", "0,", *(f"{step},{value}" for step, value in enumerate(seconds, 1))]
    metrics.write_text("\n".join(lines) + "\n")
    assert steps_in(metrics) == 22
    assert step_seconds(metrics) == [{"step": 1, "seconds": 1.0}, {"step": 21, "seconds": 3.0}]
