"""A resume with other settings: every difference is shown, and it goes on only where one insists."""

from __future__ import annotations

from pathlib import Path

import pytest

from src.cli import command as cli
from src.config.errors import UserError
from tests.training.runs import metrics_rows, train, write_world
from tests.training.test_kills import SETTINGS

CHANGED = {"algorithm__beta": 0.5, "optim__lr": 0.02, "run__seed": 5}


@pytest.fixture
def world(tmp_path: Path) -> Path:
    """A world with a run of two steps in it."""
    world = write_world(tmp_path / "world")
    assert train(world, world / "run", **SETTINGS | {"trainer__max_steps": 2}) == 0
    return world


def test_all_that_changed_is_shown_and_refused_unless_allowed(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = world / "run"
    before = (run / "config.yaml").read_bytes()
    assert train(world, run, resume="auto", **SETTINGS, **CHANGED) == 2
    told = capsys.readouterr().err
    assert "3 of the settings are not those" in told
    diff = ("algorithm.beta=0.5 (the run: 0.01)", "optim.lr=0.02 (the run: 0.01)", "run.seed=5 (the run: 0)")
    assert all(line in told for line in diff), told
    assert "resume.allow_changes=true" in told
    assert (run / "config.yaml").read_bytes() == before

    assert train(world, run, resume="auto", resume__allow_changes="true", **SETTINGS, **CHANGED) == 0
    told = capsys.readouterr().out
    assert all(line in told for line in diff), told
    assert (run / "config.before-resume.yaml").read_bytes() == before
    assert "beta: 0.5" in (run / "config.yaml").read_text()
    assert [row["step"] for row in metrics_rows(run)] == ["0", "1", "2", "3", "4"]
    # Optimiser and schedule keep their settings in the checkpoint; what was asked for is what is used.
    assert float(metrics_rows(run)[-1]["lr"]) == 0.02


@pytest.mark.parametrize("changed", [{"model__lora__r": 2}, {"model__lora": "null"}])
def test_weights_that_do_not_fit_are_refused_even_so(
    changed: dict[str, object], world: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = world / "run"
    assert train(world, run, resume="auto", resume__allow_changes="true", **SETTINGS, **changed) == 2
    assert "holds other weights than are trained now" in capsys.readouterr().err


@pytest.mark.parametrize("given", ["resume=auto", "resume.path=auto"])
def test_both_spellings_mean_the_same(given: str) -> None:
    config = cli.compose(["experiment=bicot_lora", given, "resume.allow_changes=true"])
    assert (config.resume.path, config.resume.allow_changes) == ("auto", True)


def test_only_the_bare_key_is_short_for_a_path() -> None:
    given = ["resume=auto", "resume=a,b", "resume.path=x=y", "data.resume=1", "~resume", "resume"]
    assert cli.spelled_out(given) == ["resume.path=auto", "resume.path=a,b", *given[2:]]


def test_a_mistyped_key_below_resume_is_named() -> None:
    with pytest.raises(UserError, match=r"resume\.alow_changes: no such key\. Did you mean resume\.allow_changes"):
        cli.compose(["experiment=bicot_lora", "resume.alow_changes=true"])
