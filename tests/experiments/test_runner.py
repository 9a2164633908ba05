"""Studies: which runs are made, kept, copied, refused; and the figures of their tables."""

from __future__ import annotations

import csv
import json
from math import sqrt
from pathlib import Path
from typing import Any

import pytest
import torch

from experiments import runner
from experiments.report import report, table
from experiments.reward_hacking.colours import NamedColours, named
from experiments.runner import SETTINGS, Arm, Study, main, settings
from src.shapes.worlds import BACKGROUND, SMALL
from src.values import PromptRecord

T_OF_TWO_DEGREES = 4.302652729911275  # 97.5 % quantile, any table of Student's t
PROMPTS = (("count", "two red circles"), ("one", "a red circle"))


def write_run(folder: Path, seed: int, after: tuple[float, float]) -> None:
    """A finished run's files, as far as studies read them; `after`: all-correct of the two prompts."""
    folder.mkdir(parents=True, exist_ok=True)
    kinds = {
        kind: {"before": {"all_correct": 0.0}, "after": {"all_correct": right}}
        for (kind, _), right in zip(PROMPTS, after, strict=True)
    }
    mean = sum(after) / 2
    summary = {
        "finished": True, "seed": seed, "steps": 4, "best_step": 4, "all_correct_before": 0.25,
        "all_correct_after": mean, "reward_before": 0.5, "reward_after": mean, "by_kind": kinds, "reward_warnings": [],
        "seconds_per_step": 0.5, "seconds_total": 2.0, "hardware": "a machine", "git_commit": "abc",
    }  # fmt: skip
    (folder / "summary.json").write_text(json.dumps(summary))
    (folder / "config.yaml").write_text("run: {name: x, seed: 0}\n")
    (folder / "metrics.csv").write_text(f"step,validation/all_correct,plan/kl\n0,0.25,\n4,{mean},0.125\n")
    lines = [
        {"index": index, "kind": kind, "prompt": prompt, "plan": "", "ended": True, "reward": right, "scores": {},
         "details": {"all_correct": right}}
        for index, ((kind, prompt), right) in enumerate(zip(PROMPTS, after, strict=True))
    ]  # fmt: skip
    (folder / "test_after.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


class Trainings:
    """Stands for the processes: notes each command, and leaves a finished run where it is told to."""

    def __init__(self) -> None:
        self.commands: list[list[str]] = []

    def __call__(self, command: list[str], **_: Any) -> Trainings:
        self.commands.append(command)
        words = dict(word.split("=", 1) for word in command if "=" in word)
        write_run(Path(words["run.dir"]), int(words["run.seed"]), (0.5, 0.75))
        return self

    returncode = 0


@pytest.fixture
def trainings(monkeypatch: pytest.MonkeyPatch) -> Trainings:
    monkeypatch.setattr(runner.subprocess, "run", found := Trainings())
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    return found


def start(monkeypatch: pytest.MonkeyPatch, study: Study, root: Path, *more: str) -> None:
    words = ["study", "--root", str(root), "--out", str(root / "out" / study.name), "--no-mlflow", *more]
    monkeypatch.setattr("sys.argv", words)
    main(study)


def test_settings_of_an_arm() -> None:
    main_job = settings(Arm("a", ("algorithm.beta=0",)), seed=3, steps=7)
    assert main_job[0] == "experiment=bicot_lora"
    assert main_job[-3:] == ["algorithm.beta=0", "trainer.max_steps=7", "run.seed=3"]
    other = settings(Arm("b", ("experiment=dapo",), steps=9), seed=0, steps=7)
    assert [word for word in other if word.startswith("experiment=")] == ["experiment=dapo"]
    assert "trainer.max_steps=9" in other


def test_what_is_trained_kept_copied_and_refused(
    tmp_path: Path, trainings: Trainings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shared = Arm("default")
    first = Study(tmp_path / "first", (shared, Arm("other", ("algorithm.beta=0",))), "default", steps=4)
    start(monkeypatch, first, tmp_path, "--seeds", "0", "1")
    assert len(trainings.commands) == 4
    said = capsys.readouterr().out
    assert said.count(": trained") == 4
    assert "0.625" in said

    start(monkeypatch, first, tmp_path, "--seeds", "0", "1")
    assert len(trainings.commands) == 4, "nothing again"
    assert capsys.readouterr().out.count(": kept") == 4

    (tmp_path / "first" / "default-seed0" / "mlflow.json").write_text("{}")
    second = Study(tmp_path / "second", (Arm("base"), Arm("hot", ("optim.lr=1",))), "base", steps=4)
    start(monkeypatch, second, tmp_path, "--seeds", "0")
    assert len(trainings.commands) == 5, "the base is the first study's default"
    copied = tmp_path / "second" / "base-seed0"
    assert (copied / "summary.json").is_file()
    assert not (copied / "mlflow.json").exists(), "an MLflow run of its own"

    with pytest.raises(SystemExit, match=r"base-seed0: was run with .* remove it"):
        start(monkeypatch, second, tmp_path, "--seeds", "0", "--steps", "5")
    assert len(trainings.commands) == 5

    start(monkeypatch, first, tmp_path, "--arms", "other", "--seeds", "2")
    assert [word for word in trainings.commands[-1] if word.startswith("run.name")] == ["run.name=other-seed2"]
    assert len(trainings.commands) == 6


def test_an_unfinished_run_is_resumed(tmp_path: Path, trainings: Trainings, monkeypatch: pytest.MonkeyPatch) -> None:
    study = Study(tmp_path / "study", (Arm("a"),), "a", steps=4)
    folder = tmp_path / "study" / "a-seed0"
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "checkpoints" / "last.ckpt").touch()
    (folder / SETTINGS).write_text(json.dumps(settings(study.arms[0], 0, 4)))
    start(monkeypatch, study, tmp_path, "--seeds", "0")
    assert trainings.commands[0][-1] == f"resume={folder}"


def test_a_failed_run_ends_the_study_and_names_its_log(
    tmp_path: Path, trainings: Trainings, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainings.returncode = 1  # type: ignore[misc]
    study = Study(tmp_path / "study", (Arm("a"),), "a")
    with pytest.raises(SystemExit, match=r"a-seed0: exit code 1; see .*a-seed0\.log"):
        start(monkeypatch, study, tmp_path, "--seeds", "0", "--parallel", "1")


def test_means_intervals_and_differences(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arms: dict[str, list[Path]] = {"base": [], "new": []}
    scores = {"base": [(0.2, 0.4), (0.3, 0.5), (0.4, 0.6)], "new": [(0.8, 0.4), (0.8, 0.6), (0.8, 0.8)]}
    for arm, rows in scores.items():
        for seed, after in enumerate(rows):
            write_run(folder := tmp_path / f"{arm}-seed{seed}", seed, after)
            arms[arm].append(folder)
    report(arms, "base", ("reward_after",), tmp_path / "out")
    with (tmp_path / "out" / "arms.csv").open() as file:
        base, new = csv.DictReader(file)
    # Means of the seeds: base 0.3, 0.4, 0.5; new 0.6, 0.7, 0.8. Both have a standard deviation of 0.1.
    half = T_OF_TWO_DEGREES * 0.1 / sqrt(3)
    assert (float(new["after"]), float(new["after_low"])) == pytest.approx((0.7, 0.7 - half), abs=1e-4)
    assert float(new["difference"]) == pytest.approx(0.3, abs=1e-4)
    assert float(new["difference_low"]) == pytest.approx(0.3, abs=1e-4), "the same at every seed"
    assert float(new["difference_over_prompts"]) == pytest.approx(0.3, abs=1e-4)
    assert float(new["count"]) == pytest.approx(0.8), "by kind"
    assert base["difference"] == ""
    assert float(base["reward_after"]) == pytest.approx(0.4)
    with (tmp_path / "out" / "runs.csv").open() as file:
        runs = list(csv.DictReader(file))
    assert [row["arm"] for row in runs] == ["base"] * 3 + ["new"] * 3
    assert {row["plan/kl"] for row in runs} == {"0.125"}
    assert (tmp_path / "out" / "study.png").read_bytes().startswith(b"\x89PNG")
    assert "| new | 3 | 0.250 | 0.700 (0.452 to 0.948) |" in capsys.readouterr().out
    assert table([{"arm": "a", "x": None}]).endswith("| a |  |")


def test_the_weak_reward_asks_for_more_of_the_colour() -> None:
    empty = torch.tensor(BACKGROUND)[None, :, None, None].expand(1, 3, 24, 24)
    little, much, other = empty.clone(), empty.clone(), empty.clone()
    little[:, :, :8, :8] = torch.tensor(SMALL.colors["red"])[:, None, None]
    much[:] = torch.tensor(SMALL.colors["red"])[:, None, None]
    other[:] = torch.tensor(SMALL.colors["blue"])[:, None, None]
    record = PromptRecord(prompt="a red circle", task_type="one")
    scores = NamedColours().score(torch.cat([empty, little, much, other]), [record] * 4)
    assert scores.tolist() == pytest.approx([0, 1 / 9, 1, 0])
    assert named(PromptRecord(prompt="a circle of every colour but red", task_type="reasoning")) == {
        "green", "blue", "yellow",
    }  # fmt: skip
    assert not NamedColours().applicable(PromptRecord(prompt="a circle", task_type="one"))
