"""Interrupted runs: killed or asked to stop, then resumed, they end bit-equal to the undisturbed run."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from src.training.callbacks import validation
from src.training.loop import GroupedRolloutLoop
from src.values import PromptBatch
from tests.training.runs import (
    command,
    environment,
    metrics_rows,
    rollout_lines,
    run_process,
    summary,
    train,
    without_times,
    write_world,
)

SETTINGS: dict[str, dict[str, Any]] = {
    "one update": {},
    "two updates": {"algorithm__updates_per_rollout": 2, "trainer__max_steps": 12, "evaluation__every": 6},
    "full": {"model__lora": "null", "optim__lr": 1e-3},
    "full in mixed precision": {"model__lora": "null", "optim__lr": 1e-3, "trainer__precision": "bf16-mixed"},
    "running statistics": {"rewards__normalise": "running"},
    "linear schedule": {"optim__warmup_steps": 2, "optim__schedule": "linear", "optim__weight_decay": 0.1},
}


class Killed(RuntimeError):
    """Stands for a process that dies without a word."""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def undisturbed(world: Path) -> Any:
    """The run of these settings nobody disturbed; made once for each."""
    made: dict[str, Path] = {}

    def run(name: str) -> Path:
        if name not in made:
            made[name] = world / f"undisturbed {name}".replace(" ", "-")
            assert train(world, made[name], **SETTINGS[name]) == 0
        return made[name]

    return run


def at_batch(monkeypatch: pytest.MonkeyPatch, step: int, what: Any) -> None:
    """Run `what` when the loop is about to take prompt batch `step`."""
    original = GroupedRolloutLoop.advance

    def advance(self: GroupedRolloutLoop, kwargs: Any) -> None:
        batch: PromptBatch = next(iter(kwargs.values()))
        if batch.step == step:
            what()
        original(self, kwargs)

    monkeypatch.setattr(GroupedRolloutLoop, "advance", advance)


def die() -> None:
    raise Killed


def interrupt() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def assert_same_state(run: Path, other: Path) -> None:
    """Weights, optimiser, schedule and step of the last checkpoint, and every step's figures: to the last bit."""
    ours, theirs = (
        torch.load(path / "checkpoints" / "last.ckpt", map_location="cpu", weights_only=True) for path in (run, other)
    )
    assert ours["global_step"] == theirs["global_step"]
    assert ours["state_dict"].keys() == theirs["state_dict"].keys()
    for name, value in theirs["state_dict"].items():
        assert torch.equal(ours["state_dict"][name], value), name
    for key, state in theirs["optimizer_states"][0]["state"].items():
        for name, value in state.items():
            assert torch.equal(torch.as_tensor(ours["optimizer_states"][0]["state"][key][name]), torch.as_tensor(value))
    assert ours["lr_schedulers"] == theirs["lr_schedulers"]
    steps, expected = (
        [{name: v for name, v in without_times(row).items() if "validation/" not in name} for row in metrics_rows(path)]
        for path in (run, other)
    )
    assert steps == expected, "neither gaps nor duplicates nor another figure"
    assert rollout_lines(run) == rollout_lines(other)


def assert_same_end(run: Path, other: Path) -> None:
    """The same state, and the same validations, selected weights and results."""
    assert_same_state(run, other)
    assert [without_times(row) for row in metrics_rows(run)] == [without_times(row) for row in metrics_rows(other)]
    assert (run / "checkpoints/best.safetensors").read_bytes() == (other / "checkpoints/best.safetensors").read_bytes()
    mine, expected = summary(run), summary(other)
    for name in ("steps", "finished", "reward_before", "reward_after", "best_step", "best_validation", "by_kind"):
        assert mine[name] == expected[name], name
    if (other / "adapter").exists():
        adapter = "adapter/adapter_model.safetensors"
        assert (run / adapter).read_bytes() == (other / adapter).read_bytes()


def test_the_same_run_twice_is_the_same(world: Path, tmp_path: Path, undisturbed: Any) -> None:
    assert train(world, tmp_path / "again") == 0
    assert_same_end(tmp_path / "again", undisturbed("one update"))


@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch ended")
@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("step", [3, 5])
def test_a_killed_run_resumes_to_the_same_state(
    name: str, step: int, world: Path, tmp_path: Path, undisturbed: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        at_batch(patch, step, die)
        with pytest.raises(Killed):
            train(world, run, **SETTINGS[name])
    assert not (run / "summary.json").exists()
    assert train(world, run, resume="auto", **SETTINGS[name]) == 0
    assert_same_state(run, undisturbed(name))


@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch ended")
def test_a_resume_adds_no_validation(
    world: Path, tmp_path: Path, undisturbed: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One more validation could select other weights than the undisturbed run's."""
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        at_batch(patch, 2, die)
        with pytest.raises(Killed):
            train(world, run)
    assert train(world, run, resume="auto") == 0
    assert_same_end(run, undisturbed("one update"))


@pytest.mark.parametrize("name", ["one update", "two updates"])
@pytest.mark.parametrize(
    ("what", "number"),
    [
        (interrupt, signal.SIGINT),
        (terminate, signal.SIGTERM),
    ],
    ids=["SIGINT", "SIGTERM"],
)
def test_a_run_that_was_asked_to_stop_resumes_to_the_same_end(
    name: str,
    what: Any,
    number: signal.Signals,
    world: Path,
    tmp_path: Path,
    undisturbed: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = tmp_path / "run"
    settings = SETTINGS[name] | {"checkpoint__every": 100}
    previous = signal.getsignal(number)
    with monkeypatch.context() as patch:
        at_batch(patch, 2, what)
        assert train(world, run, **settings) == 128 + number
    updates = settings.get("algorithm__updates_per_rollout", 1)
    stopped = summary(run)
    assert stopped["finished"] is False
    assert stopped["interrupted_by_signal"] == number
    assert stopped["steps"] == 3 * updates, "the running step was finished, no other begun"
    for file in ("checkpoints/last.ckpt", "adapter/adapter_model.safetensors", "samples_after.png"):
        assert (run / file).is_file()
    assert signal.getsignal(number) == previous
    assert train(world, run, resume="auto", **settings) == 0
    assert_same_end(run, undisturbed(name))


@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch ended")
def test_twice_interrupted_is_as_good_as_never(
    world: Path, tmp_path: Path, undisturbed: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        at_batch(patch, 1, interrupt)
        assert train(world, run, resume="auto") == 130
    with monkeypatch.context() as patch:
        at_batch(patch, 4, die)
        with pytest.raises(Killed):
            train(world, run, resume="auto")
    assert train(world, run, resume=run) == 0
    assert_same_state(run, undisturbed("one update"))


def test_killed_before_the_first_checkpoint_starts_over(
    world: Path, tmp_path: Path, undisturbed: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        at_batch(patch, 1, die)
        with pytest.raises(Killed):
            train(world, run)
    assert not (run / "checkpoints" / "last.ckpt").exists()
    assert train(world, run, resume="auto") == 0
    assert_same_end(run, undisturbed("one update"))


def test_resuming_a_finished_run_says_so_and_changes_nothing(world: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert train(world, run, trainer__max_steps=2) == 0
    before = {path: path.read_bytes() for path in run.rglob("*") if path.suffix in (".csv", ".jsonl", ".safetensors")}
    assert train(world, run, trainer__max_steps=2, resume="auto") == 0
    assert before == {path: path.read_bytes() for path in before}
    assert summary(run)["finished"] is True


def test_a_longer_run_goes_on_from_a_finished_one(world: Path, tmp_path: Path, undisturbed: Any) -> None:
    run = tmp_path / "run"
    assert train(world, run, trainer__max_steps=3, optim__schedule="constant") == 0
    assert train(world, run, trainer__max_steps=6, optim__schedule="constant", resume="auto") == 0
    longer = world / "constant"
    assert train(world, longer, optim__schedule="constant") == 0
    assert_same_end(run, longer)


def test_a_run_stopped_in_its_report_is_reported_when_resumed(world: Path, tmp_path: Path, undisturbed: Any) -> None:
    """Killed between its last step and the end of its report: all that is left to do is the report."""
    run = tmp_path / "run"
    assert train(world, run) == 0
    (run / "summary.json").unlink()
    (run / "samples_after.png").unlink()
    assert train(world, run, resume="auto") == 0
    assert (run / "samples_after.png").is_file()
    assert_same_end(run, undisturbed("one update"))


def test_a_stop_in_the_middle_of_a_validation_loses_no_validation(
    world: Path, tmp_path: Path, undisturbed: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    original = validation.evaluate
    calls = []

    def evaluate(*arguments: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            interrupt()
        return original(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(validation, "evaluate", evaluate)
        assert train(world, run, checkpoint__every=100) == 130
    assert train(world, run, resume="auto", checkpoint__every=100) == 0
    assert_same_end(run, undisturbed("one update"))


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"run__seed": 5}, ["run.seed", "5"]),
        ({"algorithm__beta": 0.5}, ["algorithm.beta=0.5"]),
        ({"model__lora__r": 2}, ["model.lora.r=2"]),
        ({"model__lora": "null"}, ["model.lora"]),
    ],
)
def test_a_resume_with_other_settings_is_refused_and_changes_nothing(
    changed: dict[str, Any], words: list[str], world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert train(world, run, trainer__max_steps=1) == 0
    before = (run / "config.yaml").read_bytes()
    assert train(world, run, trainer__max_steps=2, resume="auto", **changed) == 2
    told = capsys.readouterr().err
    assert all(word in told for word in words), told
    assert (run / "config.yaml").read_bytes() == before


def test_a_resume_may_cut_its_steps_otherwise(world: Path, tmp_path: Path) -> None:
    """What keeps a step within memory is no part of what the run is: one that ran out of it goes on."""
    run = tmp_path / "run"
    assert train(world, run, trainer__max_steps=1) == 0
    smaller = {"optim__microbatch": 2, "optim__split_levels": "true", "optim__activation_checkpointing": "true"}
    smaller |= {"rollout__max_rows": 3, "rollout__graph": "false"}
    assert train(world, run, trainer__max_steps=2, resume="auto", **smaller) == 0
    assert [row["microbatch"] for row in metrics_rows(run)[1:]] == ["4.0", "2.0"]
    assert summary(run)["microbatch"] == 2
    assert summary(run)["rollout_graph"] is False
    assert summary(run)["memory_estimate"]["total"] > 0


@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch ended")
def test_a_resume_may_find_its_experts_elsewhere(
    world: Path, tmp_path: Path, undisturbed: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where they are and how the run is watched is not what it computes."""
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        at_batch(patch, 2, die)
        with pytest.raises(Killed):
            train(world, run)
    moved = {"+rewards__devices__red": "cpu", "rewards__remote__retries": 2, "rewards__watch__window": 20}
    assert train(world, run, resume="auto", **moved) == 0
    assert_same_end(run, undisturbed("one update"))


@pytest.mark.slow
@pytest.mark.parametrize(
    "number",
    [signal.SIGINT, signal.SIGTERM],
)
def test_a_signal_from_outside_saves_everything(number: signal.Signals, world: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = subprocess.Popen(
        command(world, run, trainer__max_steps=5000),
        cwd=tmp_path,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        deadline = time.monotonic() + 120
        while not (run / "rollouts.jsonl").exists():
            assert process.poll() is None, process.communicate()[0]
            assert time.monotonic() < deadline
            time.sleep(0.2)
        process.send_signal(number)
        output, _ = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 128 + number, output
    assert "Traceback" not in output
    found = summary(run)
    assert found["interrupted_by_signal"] == number
    assert 0 < found["steps"] < 5000
    assert isinstance(found["reward_after"], float)
    for file in ("checkpoints/last.ckpt", "adapter/adapter_config.json", "metrics.csv", "samples_after.png"):
        assert (run / file).is_file()
    assert [int(row["step"]) for row in metrics_rows(run)] == list(range(found["steps"] + 1))


@pytest.mark.slow
def test_sigkill_and_resume_in_processes_of_their_own(world: Path, tmp_path: Path, undisturbed: Any) -> None:
    """Nothing of the first process is left when the second begins; the end is bit-equal to this process's run."""
    run = tmp_path / "run"
    process = subprocess.Popen(
        command(world, run), cwd=tmp_path, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        while not (run / "checkpoints" / "last.ckpt").exists() and process.poll() is None:
            time.sleep(0.01)
    finally:
        process.kill()
        process.wait()
    done = run_process(command(world, run, resume="auto"), tmp_path)
    assert done.returncode == 0, done.stderr
    assert_same_state(run, undisturbed("one update"))
