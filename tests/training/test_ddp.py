"""Two processes (gloo) do what one does: the same rollouts, gradients and weights."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from src.values import IMAGE, PLAN
from tests.training.lightning_pieces import write_prompts
from tests.training.pieces import ADVANTAGES, assert_same_gradients
from tests.training.runs import metrics_rows, overrides, run_process, summary, write_world

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[int, int], Any]:
    """(world, rank) -> (rollouts by step, gradients by step, weights, figures by step)."""
    out = tmp_path_factory.mktemp("ddp")
    return recorded(out, "toy", 1) | recorded(out, "toy", 2)


def recorded(
    out: Path, kind: str, world: int, strategy: str = "ddp", accelerator: str = "cpu"
) -> dict[tuple[int, int], Any]:
    """What each process of a run of `ddp_worker` saw."""
    if not (out / "prompts").exists():
        write_prompts(out / "prompts")
    worker = [sys.executable, "-m", "tests.training.ddp_worker", str(out), str(world), kind, strategy, accelerator]
    done = run_process(worker, out)
    assert done.returncode == 0, done.stderr[-3000:]
    return {(world, rank): torch.load(out / f"{kind}-{world}-{rank}.pt") for rank in range(world)}


def test_both_sample_what_one_samples(records: dict[tuple[int, int], Any]) -> None:
    for step in range(3):
        alone = records[1, 0][0][step]
        first, second = (records[2, rank][0][step] for rank in (0, 1))
        assert first["positions"] + second["positions"] == alone["positions"] == (0, 1, 2, 3)
        for level in (PLAN, IMAGE):
            assert first[level] + second[level] == alone[level]
    unequal = [records[2, 0][0][step]["tokens"] != records[2, 1][0][step]["tokens"] for step in range(3)]
    assert any(unequal), "ranks with unequal token counts are the hard case of the normaliser"


def test_gradients_and_weights_are_those_of_one(records: dict[tuple[int, int], Any]) -> None:
    assert_as_one(records)


def test_split_levels_give_the_gradients_of_one_process_unsplit(
    records: dict[tuple[int, int], Any], tmp_path: Path
) -> None:
    """The last backward, of the image level, leaves the plan's table and head alone: DDP alone would not sum those."""
    split = recorded(tmp_path, "split", 2)
    assert_as_one({**split, (1, 0): records[1, 0]})
    heads = [name for name in split[2, 0][1][0] if PLAN in name]
    assert heads
    assert all(float(split[2, 0][1][0][name].abs().max()) > 0 for name in heads)


def test_a_whole_janus_split_and_checkpointed(tmp_path: Path) -> None:
    """Full fine-tuning: lm_head takes no part in the image level."""
    found = recorded(tmp_path, "janus", 1) | recorded(tmp_path, "janus", 2)
    for rank in (0, 1):
        assert_same_gradients(found[2, rank][1][0], found[1, 0][1][0], ADVANTAGES)
    for name, value in found[2, 0][2].items():
        assert torch.equal(value, found[2, 1][2][name]), "the ranks stay together"


def assert_as_one(records: dict[tuple[int, int], Any]) -> None:
    """Gradients of two processes equal those of one, and their weights each other's."""
    for step in range(3):
        expected = records[1, 0][1][step]
        for rank in (0, 1):
            got = records[2, rank][1][step]
            assert_same_gradients(got, expected, ADVANTAGES)
    for name, value in records[2, 0][2].items():
        assert torch.equal(value, records[2, 1][2][name]), "the ranks stay together"


def test_both_log_the_figures_of_one(records: dict[tuple[int, int], Any]) -> None:
    """Rewards, plans and losses of all rollouts, on each rank; what is only counted agrees to the last digit."""
    for step in range(3):
        expected = records[1, 0][3][step]
        assert {"reward", "reward_std", "groups_without_signal", "plan/ended", "named_colour/mean"} <= expected.keys()
        for rank in (0, 1):
            got = records[2, rank][3][step]
            assert got == records[2, 0][3][step]
            assert got == pytest.approx(expected, rel=ADVANTAGES, abs=ADVANTAGES)
            for name in ("plan/length", "plan/ended", "plan/tokens", "groups_without_signal"):
                assert got[name] == expected[name], name
            if step == 0:
                for name in ("reward", "reward_std", "named_colour/std"):
                    assert got[name] == expected[name], name


@pytest.mark.parametrize(
    "named",
    [
        pytest.param(True, id="run.dir"),
        pytest.param(
            False,
            id="by time",
        ),
    ],
)
def test_a_whole_run_on_two_processes(tmp_path: Path, named: bool) -> None:
    """The command line with trainer.devices=2; without run.dir both processes must still use one folder."""
    world = write_world(tmp_path / "world")
    run = tmp_path / "run" if named else None
    arguments = overrides(
        world, run, trainer__devices=2, trainer__strategy="ddp", trainer__max_steps=2, run__root=tmp_path / "runs"
    )
    done = run_process([sys.executable, "-m", "src.train", *arguments], tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    folders = [run] if run else list((tmp_path / "runs").glob("bicot_lora-*"))
    assert len(folders) == 1, folders
    assert summary(folders[0])["finished"] is True
    assert [row["step"] for row in metrics_rows(folders[0])] == ["0", "1", "2"]
