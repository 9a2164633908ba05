"""Losses and gradients that blow up: the step is skipped on all ranks alike, counted, and there is an end to it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor

from src.training.collect import NonFiniteError
from src.training.loop import GroupedRolloutLoop
from src.training.module import BiCoTModule
from tests.training.lightning_pieces import fit, toy_module
from tests.training.runs import metrics_rows, summary, train, write_world
from tests.training.test_kills import SETTINGS, assert_nothing_half_written
from tests.training.test_resume import Killed, assert_same_end, at_batch, die


class Weights(L.Callback):
    """The weights, the moments' step counts, the learning rate and the skipped steps after each prompt batch."""

    def __init__(self) -> None:
        self.seen: list[tuple[dict[str, Tensor], list[float], float, float]] = []

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, *_: Any) -> None:
        weights = {name: value.detach().clone() for name, value in pl_module.policy.named_parameters()}
        optimizer = trainer.optimizers[0]
        steps = [float(state["step"]) for state in optimizer.state.values()]
        lr = optimizer.param_groups[0]["lr"]
        self.seen.append((weights, steps, lr, pl_module.step_metrics["skipped_steps"]))


def poison(monkeypatch: pytest.MonkeyPatch, bad: set[int], factor: float = float("inf")) -> None:
    """Multiply the loss of the `bad` updates, by their number in this process."""
    original, count = BiCoTModule.manual_backward, iter(range(10**6))

    def backward(self: BiCoTModule, loss: Tensor, *rest: Any, **options: Any) -> None:
        original(self, loss * factor if next(count) in bad else loss, *rest, **options)

    monkeypatch.setattr(BiCoTModule, "manual_backward", backward)


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return all(torch.equal(value, b[name]) for name, value in a.items())


def test_a_skipped_step_moves_the_schedule_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    poison(monkeypatch, {1, 2, 4})
    watched = Weights()
    trainer, _ = fit(toy_module(max_steps=6, schedule="linear"), tmp_path, (watched,))
    weights, steps, lrs, skipped = zip(*watched.seen, strict=True)
    moved = [not same(weights[i], weights[i - 1]) for i in range(1, 6)]
    assert moved == [False, False, True, False, True]
    assert [max(s) for s in steps] == [1, 1, 1, 2, 2, 3], "Adam's own count"
    assert skipped == (0, 1, 2, 2, 3, 3)
    assert lrs == pytest.approx([1e-2 * (0.1 + 0.9 * (1 - (i + 1) / 6)) for i in range(6)])
    assert trainer.global_step == 6
    assert "step skipped: the gradient norm is" in capsys.readouterr().out


def test_too_large_a_gradient_is_skipped_where_a_bound_is_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    poison(monkeypatch, {1}, factor=1e6)
    watched = Weights()
    fit(toy_module(max_steps=3, max_grad_norm=1e3), tmp_path, (watched,))
    assert [seen[3] for seen in watched.seen] == [0, 1, 1]
    assert same(watched.seen[0][0], watched.seen[1][0])
    assert "more than optim.max_grad_norm" in capsys.readouterr().out


@pytest.mark.parametrize(("bound", "updates"), [(0, 1), (2, 3)])
def test_there_is_an_end_to_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bound: int, updates: int) -> None:
    poison(monkeypatch, set(range(1, 100)))
    with pytest.raises(NonFiniteError, match=rf"step {updates}: .*optim.max_skipped_steps={bound}.*lower optim.lr"):
        fit(toy_module(max_steps=20, max_skipped_steps=bound), tmp_path)


def test_the_decision_is_that_of_all_ranks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rank whose own gradient is fine skips with one whose is not (as `reduce_boolean_decision` says)."""
    watched = Weights()
    module = toy_module(max_steps=2)
    asked: list[tuple[bool, bool]] = []
    original = GroupedRolloutLoop._step

    def step(self: GroupedRolloutLoop, *arguments: Any) -> None:
        def elsewhere(decision: bool, all: bool = True) -> bool:
            asked.append((decision, all))
            return len(asked) == 2

        monkeypatch.setattr(self.trainer.strategy, "reduce_boolean_decision", elsewhere)
        original(self, *arguments)
        monkeypatch.undo()

    with monkeypatch.context():
        GroupedRolloutLoop._step = step  # type: ignore[method-assign]
        try:
            fit(module, tmp_path, (watched,))
        finally:
            GroupedRolloutLoop._step = original  # type: ignore[method-assign]
    assert asked == [(False, False), (False, False)]
    assert same(watched.seen[0][0], watched.seen[1][0])


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_world(tmp_path_factory.mktemp("world"))


@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch ended")
def test_a_run_with_skipped_steps_resumes_bit_for_bit(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = SETTINGS | {"rollout__prompts_per_step": 1}
    with monkeypatch.context() as patch:
        poison(patch, {1, 3})
        assert train(world, tmp_path / "whole", **settings) == 0
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        poison(patch, {1})
        at_batch(patch, 2, die)
        with pytest.raises(Killed):
            train(world, run, **settings)
    with monkeypatch.context() as patch:
        poison(patch, {1})  # the fourth update is the second of this sitting
        assert train(world, run, resume="auto", **settings) == 0
    assert_same_end(run, tmp_path / "whole")
    assert [row["skipped_steps"] for row in metrics_rows(run)[1:]] == ["0.0", "1.0", "1.0", "2.0"]


def test_a_run_that_blows_up_ends_with_its_best_weights(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        poison(patch, set(range(2, 100)), factor=float("nan"))
        settings = SETTINGS | {"trainer__max_steps": 20, "optim__max_skipped_steps": 2}
        assert train(world, run, **settings) == 1
    told = capsys.readouterr().err
    assert "error: step 4: the gradient norm is nan, in 3 steps in a row (optim.max_skipped_steps=2)" in told
    assert f"the last good checkpoint is {run / 'checkpoints' / 'last.ckpt'}" in told
    assert (run / "checkpoints" / "best.safetensors").is_file()
    assert_nothing_half_written(run)
    assert train(world, run, resume="auto", **SETTINGS | {"trainer__max_steps": 20}) == 0
    assert summary(run)["steps"] == 20
