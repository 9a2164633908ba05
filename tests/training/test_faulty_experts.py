"""Experts that raise, give what is no score, or hang: the run ends, naming expert, prompt and step."""

from __future__ import annotations

import signal
import time
from pathlib import Path
from typing import Any

import pytest

from src.training.watchdog import EXIT_STILL
from tests.training.forked import forked
from tests.training.runs import overrides, train, write_world
from tests.training.test_kills import SETTINGS, assert_nothing_half_written
from tests.training.test_resume import assert_same_end

# The expert is asked for the prompts of: the validation before, the test before and its pictures, then each step.
BEFORE_STEP_2 = 5


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_world(tmp_path_factory.mktemp("world"))


def command(world: Path, run: Path, fault: str, **settings: Any) -> list[str]:
    expert = {
        "+rewards.experts.faulty._target_": "tests.training.faulty_experts.Faulty",
        "+rewards.experts.faulty.fault": f"'{fault}'",
        "+rewards.experts.faulty.calls": BEFORE_STEP_2,
    }
    return overrides(world, run, **SETTINGS | {"evaluation__every": 100} | expert | settings)


@pytest.mark.parametrize(
    ("fault", "problem"),
    [
        ("raises", "ZeroDivisionError: no such picture"),
        ("nan", "score nan is outside [0.0, 1.0]"),
        ("shape", "score is torch.float32 (4, 1), expected float32 (4,)"),
    ],
)
def test_the_expert_the_prompt_and_the_step_are_named(
    fault: str, problem: str, world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from src.cli import command as cli
    from src.train import COMMAND

    run = tmp_path / "run"
    assert cli.run(COMMAND, command(world, run, fault)) == 1
    told = capsys.readouterr().err
    assert f"error: reward expert 'faulty': step 2: {problem} (prompt: 'one " in told
    assert f"the last good checkpoint is {run / 'checkpoints' / 'last.ckpt'}" in told
    assert_nothing_half_written(run)


@pytest.mark.slow
@pytest.mark.faults
@pytest.mark.parametrize(("fault", "code"), [("hangs", EXIT_STILL), ("hangs with Python's lock", -signal.SIGABRT)])
def test_a_watchdog_ends_a_run_that_hangs(fault: str, code: int, world: Path, tmp_path: Path) -> None:
    """Within its time it names phase, expert and prompt; a hang that holds even Python's lock ends, too."""
    run = tmp_path / "run"
    started = time.monotonic()
    fault = fault.replace("'", "\\'")
    ended = forked([*command(world, run, fault), "watchdog.seconds=6"], tmp_path / "log")
    assert ended.code == code, ended.output
    assert time.monotonic() - started < 60
    assert 'faulty_experts.py", line' in ended.output, "the stack says where"
    if code == EXIT_STILL:
        assert "s in: step 2, scoring (expert 'faulty', first prompt 'one " in ended.output
        assert "the last good checkpoint is" in ended.output
    assert_nothing_half_written(run)
    undisturbed = tmp_path / "undisturbed"
    healthy = {"+rewards.experts.faulty.calls": 1000}
    ended = forked(command(world, undisturbed, fault, **healthy), tmp_path / "log")
    assert ended.code == 0, ended.output
    ended = forked(
        [*command(world, run, fault, **healthy), "resume=auto", "resume.allow_changes=true"], tmp_path / "log"
    )
    assert ended.code == 0, ended.output
    assert_same_end(run, undisturbed)


def test_without_a_watchdog_nothing_is_watched(world: Path, tmp_path: Path) -> None:
    assert train(world, tmp_path / "run", watchdog__seconds="null", **SETTINGS | {"trainer__max_steps": 1}) == 0
