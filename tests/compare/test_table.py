"""Grouping, ranking and differences, on run folders with chosen figures."""

from __future__ import annotations

from pathlib import Path

import pytest

from src.compare import curves, render
from src.compare.folders import find_runs, read_run
from src.compare.table import Comparison, compare, differing
from src.config.errors import UserError
from tests.compare.runs import write_run


def compared(root: Path, metric: str = "validation/reward", **settings: str) -> Comparison:
    return compare([read_run(path) for path in find_runs(root)], metric, **settings)


def test_only_what_differs_is_a_column() -> None:
    assert differing([{"a": "1", "b": "2"}, {"a": "1", "b": "3"}]) == ("b",)
    assert differing([{"a": "1"}, {"a": "1", "new": "x"}]) == ("new",)
    assert differing([{"a": "1"}]) == ()


def test_seeds_are_one_row_with_an_interval_and_the_best_stands_first(tmp_path: Path) -> None:
    for seed, last in enumerate((0.4, 0.5, 0.6)):
        write_run(tmp_path / f"seed{seed}", {0: 0.1, 5: 0.7, 10: last}, f"run.seed={seed}", "algorithm.beta=0.02")
    write_run(tmp_path / "single", {0: 0.1, 5: 0.3, 10: 0.9}, "algorithm.beta=0")
    found = compared(tmp_path)
    assert found.settings == ("beta",)
    assert [(row.label, len(row.runs)) for row in found.rows] == [("single", 1), ("seed0 and 2 more", 3)]
    single, seeds = found.rows
    assert single.final is not None
    assert (single.final.value, single.final.low, single.best_step) == (0.9, None, 10)
    assert seeds.final is not None
    assert seeds.best is not None
    assert (seeds.final.value, seeds.final.over) == (pytest.approx(0.5), "seeds")
    assert seeds.final.high == pytest.approx(0.5 + 0.2484138, abs=1e-6)
    assert (seeds.best.value, seeds.best.low, seeds.best.high) == (pytest.approx(0.7),) * 3
    assert found.best_run is not None
    assert found.best_run.name == "single"
    assert (seeds.seconds_per_step, seeds.seconds_total, seeds.peak_memory_gib, seeds.steps) == (1.5, 30.0, 1.25, 10)
    assert "one seed says nothing of others" in " ".join(found.notes)


def test_the_same_seed_twice_is_no_second_seed(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_run(tmp_path / name, {0: 0.1, 10: 0.5})
    assert [len(row.runs) for row in compared(tmp_path).rows] == [1, 1]


def test_an_unfinished_run_is_shown_by_itself_with_what_it_has(tmp_path: Path) -> None:
    write_run(tmp_path / "done", {0: 0.1, 10: 0.5})
    write_run(tmp_path / "going", {0: 0.1, 4: 0.6}, "run.seed=1", finished=False)
    write_run(tmp_path / "starting", {}, "run.seed=2", finished=False)
    rows = {row.label: row for row in compared(tmp_path).rows}
    assert {name: (row.status, row.steps) for name, row in rows.items()} == {
        "going": ("unfinished", 4), "done": ("finished", 10), "starting": ("unfinished", 0),
    }  # fmt: skip
    assert rows["going"].seconds_per_step == 0.5, "2 s for 4 updates"
    assert rows["going"].seconds_total is None
    assert rows["starting"].best is None
    assert list(rows)[-1] == "starting"


def test_lower_is_better_with_mode_min(tmp_path: Path) -> None:
    write_run(tmp_path / "low", {0: 0.5, 5: 0.1, 10: 0.2}, "algorithm.beta=0")
    write_run(tmp_path / "high", {0: 0.5, 5: 0.3, 10: 0.4}, "algorithm.beta=1")
    found = compared(tmp_path, mode="min")
    assert [(row.label, row.best_step) for row in found.rows] == [("low", 5), ("high", 5)]
    assert found.best_run is not None
    assert found.best_run.name == "low"


def test_a_baseline_is_compared_prompt_by_prompt(tmp_path: Path) -> None:
    scores = [i / 10 for i in range(10)]
    write_run(tmp_path / "base", {10: 0.5}, "algorithm.beta=0", test=scores)
    write_run(tmp_path / "better", {10: 0.6}, "algorithm.beta=1", test=[score + 0.05 for score in scores])
    write_run(tmp_path / "other", {10: 0.4}, "algorithm.beta=2", test=scores[:5])
    write_run(tmp_path / "silent", {10: 0.3}, "algorithm.beta=3")
    found = compared(tmp_path, baseline="base")
    rows = {row.label: row for row in found.rows}
    better = rows["better"]
    assert better.difference is not None
    assert [better.difference.value, better.difference.low] == pytest.approx([0.05, 0.05])
    assert better.test is not None
    assert (better.test.value, better.test.over) == (pytest.approx(0.5), "prompts")
    assert [rows[name].difference for name in ("base", "other", "silent")] == [None] * 3
    assert rows["silent"].test is None
    assert any(note.startswith("no difference for other, silent") for note in found.notes)


def test_a_folder_without_runs_is_the_users_error(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no run there"):
        find_runs(tmp_path)


def test_a_broken_file_is_named(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", {10: 0.5}, test=[0.5])
    run.metrics.write_text("step,reward\nx,1\n")
    with pytest.raises(UserError, match=r"metrics\.csv: cannot be read"):
        read_run(run.path)
    run.metrics.write_text("step,reward\n1,1\n")
    run.test_samples("after").write_text('{"index": 0}\n')
    with pytest.raises(UserError, match=r"test_after\.jsonl: cannot be read"):
        read_run(run.path)


def test_markdown_and_csv_say_the_same(tmp_path: Path) -> None:
    import csv

    write_run(tmp_path / "a|b", {0: 0.25, 10: 0.5}, "algorithm.beta=0", test=[0.0, 1.0, 1.0])
    write_run(tmp_path / "c", {0: 0.25, 10: 0.75}, "algorithm.beta=0.5")
    found = compared(tmp_path)
    lines = list(csv.DictReader(render.table_csv(found).splitlines()))
    assert [(line["runs"], line["beta"], line["final"], line["final_low"], line["best_step"]) for line in lines] == [
        ("c", "0.5", "0.75", "", "10"), ("a|b", "0.0", "0.5", "", "10"),
    ]  # fmt: skip
    assert float(lines[1]["test"]) == pytest.approx(2 / 3)
    assert (lines[1]["test_over"], lines[0]["test"]) == ("prompts", "")
    table = [line for line in render.markdown(found, "export: x").splitlines() if line.startswith("| ")]
    assert [line.split(" | ")[1:4] for line in table[2:]] == [["0.5", "0", "0.75"], ["0.0", "0", "0.5"]]
    assert "a\\|b" in table[3]
    assert len({line.replace("\\|", "").count("|") for line in table}) == 1, "every line has the same columns"


def test_the_plots_mean_is_over_the_steps_that_all_seeds_have(tmp_path: Path) -> None:
    both = [((0, 0.0), (5, 1.0), (10, 2.0)), ((0, 1.0), (10, 4.0))]
    assert curves.mean_series(both) == ((0, 0.5), (10, 3.0))
    assert curves.mean_series([((1, 1.0),), ((2, 2.0),)]) == ((1, 1.0),)
