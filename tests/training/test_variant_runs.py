"""The named variants as a user starts them: each experiment file runs; senseless settings end before the run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from src.algorithms import names
from src.build import build_algorithm
from src.cli import command as cli
from src.cli.errors import group_options
from src.config.schema import CONFIGS, AlgorithmConfig
from src.train import COMMAND
from tests.conftest import ROOT
from tests.training.runs import (
    checkpoint_weights,
    command,
    metrics_rows,
    overrides,
    run_process,
    summary,
    write_world,
)

VARIANTS = sorted({*names(), "plan_only", "image_only"})
# What an experiment file sets besides choosing the algorithm.
SUITED = {
    "cispo": {"updates_per_rollout"},
    "dapo": {"unfinished_plan_penalty", "overlong_penalty", "overlong_margin"},
    "reinforce_pp": {"beta"},
}
SHORT = (
    "trainer.max_steps=2",
    "rollout.prompts_per_step=2",
    "rollout.group_size=4",
    "evaluation.validation_prompts=4",
    "evaluation.test_prompts=4",
    "evaluation.picture_prompts=1",
    "trainer.progress_bar=false",
    "trainer.accelerator=cpu",
    "trainer.devices=1",
    "logger=csv",
)


def test_every_algorithm_has_its_file_and_every_variant_its_experiment() -> None:
    assert set(names()) <= set(group_options("algorithm"))
    assert {*VARIANTS, "bicot_lora"} <= set(group_options("experiment"))


@pytest.mark.parametrize("name", names())
def test_an_algorithm_file_names_its_own_variant(name: str) -> None:
    assert cli.compose([f"algorithm={name}"]).algorithm.name == name


@pytest.mark.parametrize("name", names())
def test_the_main_job_leaves_a_variant_its_own_constants(name: str) -> None:
    """`experiment=bicot_lora algorithm=NAME` is NAME as configs/algorithm/NAME.yaml has it, else as the schema does."""
    given = OmegaConf.load(CONFIGS / "algorithm" / f"{name}.yaml")
    composed = cli.compose(["experiment=bicot_lora", f"algorithm={name}"]).algorithm
    assert composed.name == name
    for key in ("clip_low", "clip_high", "beta", "kl", "kl_in", "updates_per_rollout", "dynamic_sampling"):
        assert composed[key] == OmegaConf.select(given, key, default=getattr(AlgorithmConfig(), key)), key
    own = cli.compose([f"experiment={name}"]).algorithm
    assert {key for key in composed if composed[key] != own[key]} <= SUITED.get(name, set())


def test_the_main_job_is_grpo_with_a_kl() -> None:
    job, grpo = (cli.compose([f"experiment={name}"]) for name in ("bicot_lora", "grpo"))
    assert (job.algorithm.name, job.algorithm.beta) == ("grpo", 0.01)
    assert (job.run.name, grpo.run.name) == ("bicot_lora", "grpo")
    for group in ("algorithm", "rollout", "optim", "evaluation", "trainer"):
        assert job[group] == grpo[group]


@pytest.mark.parametrize("name", VARIANTS)
def test_an_experiment_file_runs_two_steps_on_the_embedded_checkpoint(name: str, tmp_path: Path) -> None:
    assert cli.run(COMMAND, [f"experiment={name}", f"run.dir={tmp_path / 'run'}", *SHORT]) == 0
    figures = summary(tmp_path / "run")
    assert (figures["name"], figures["steps"], figures["finished"]) == (name, 2, True)
    rows = [row for row in metrics_rows(tmp_path / "run") if row.get("seconds")]
    assert len(rows) == 2 // cli.compose([f"experiment={name}"]).algorithm.updates_per_rollout
    for row in rows:
        for level in ("plan", "image"):
            assert float(row[f"{level}/mismatch_max"]) < 1e-3
        assert 0 <= float(row["plan/ended"]) <= 1
    config = cli.compose([f"experiment={name}"])
    with_kl = "image/kl" in rows[0] and rows[0]["image/kl"] != ""
    assert with_kl == (config.algorithm.beta > 0), "the reference runs where there is a KL, and only there"
    assert ("refill/rounds" in rows[0]) == (name == "dapo")


REFUSED: dict[str, tuple[list[str], list[str]]] = {
    "stale rollouts": (
        ["algorithm=rloo", "algorithm.updates_per_rollout=2"],
        ["algorithm.updates_per_rollout=2", "rloo", "set it to 1"],
    ),
    "k1 in the loss": (["algorithm.kl=k1"], ["algorithm.kl=k1", "algorithm.kl_in=loss", "algorithm.kl_in=reward"]),
    "an unknown kl": (["algorithm.kl=k4"], ["algorithm.kl=k4", "k1, k2, k3, exact"]),
    "no kl in the reward": (
        ["algorithm.kl_in=reward", "algorithm.beta=0"],
        ["algorithm.kl_in=reward", "algorithm.beta=0", "algorithm.kl_in=loss"],
    ),
    "a level without its kl": (
        ["algorithm=reinforce_pp", "algorithm.level_weights.plan=0"],
        ["algorithm.level_weights.plan=0", "algorithm.kl_in=reward", "algorithm.beta=0.0001", "algorithm.kl_in=loss"],
    ),
    "an unknown place": (["algorithm.kl_in=advantage"], ["algorithm.kl_in=advantage", "loss, reward"]),
    "an unknown variant": (["algorithm.name=ppo"], ["algorithm.name=ppo", "dr_grpo"]),
    "no clip at all": (["algorithm.clip_low=0", "algorithm.clip_high=0"], ["clip_low=0", "one above 0"]),
    "no level": (
        ["algorithm.level_weights.plan=0", "algorithm.level_weights.image=0"],
        ["algorithm.level_weights", "one above"],
    ),
    "a negative weight": (["algorithm.level_weights.plan=-1"], ["algorithm.level_weights.plan=-1", ">= 0"]),
    "a share of nothing": (
        ["algorithm.level_shares.plan=0", "algorithm.level_shares.image=1"],
        ["algorithm.level_shares.plan=0", "algorithm.level_weights"],
    ),
    "half of the shares": (
        ["algorithm.level_shares.plan=1"],
        ["algorithm.level_shares.plan=1", "algorithm.level_shares.image=None", "set both"],
    ),
    "masked and penalised": (
        ["algorithm.mask_unfinished=true", "algorithm.unfinished_plan_penalty=0.5"],
        ["algorithm.mask_unfinished=true", "algorithm.unfinished_plan_penalty=0.5", "set one"],
    ),
    "a penalty without margin": (
        ["algorithm.overlong_penalty=0.5"],
        ["algorithm.overlong_penalty=0.5", "algorithm.overlong_margin=None", "set both"],
    ),
    "a margin above the cap": (
        ["algorithm.overlong_penalty=0.5", "algorithm.overlong_margin=30", "rollout.max_plan_tokens=24"],
        ["algorithm.overlong_margin=30", "rollout.max_plan_tokens=24"],
    ),
    "a target without penalty": (
        ["algorithm.penalties_on=plan", "algorithm.unfinished_plan_penalty=0"],
        ["algorithm.penalties_on=plan", "unfinished_plan_penalty"],
    ),
    "dynamic sampling without groups": (
        ["algorithm=reinforce_pp", "algorithm.dynamic_sampling=true"],
        ["algorithm.dynamic_sampling=true", "reinforce_pp", "reinforce_pp_baseline"],
    ),
    "an idle tolerance": (
        ["algorithm.signal_tolerance=0.1"],
        ["algorithm.signal_tolerance=0.1", "algorithm.dynamic_sampling=true"],
    ),
    "nothing to refresh": (
        ["algorithm.beta=0", "algorithm.reference_refresh=10"],
        ["algorithm.reference_refresh=10", "algorithm.beta=0"],
    ),
    "a cap below one": (["algorithm.correction_cap=0.9"], ["algorithm.correction_cap=0.9", "> 1"]),
    "a bonus above its bound": (
        ["algorithm.entropy_target.plan=1", "algorithm.entropy_bonus.plan=0.2"],
        ["algorithm.entropy_bonus.plan=0.2", "algorithm.entropy_maximum=0.1"],
    ),
    "a step without a target": (
        ["algorithm.entropy_bonus.plan=0.01", "algorithm.entropy_step=0.01"],
        ["algorithm.entropy_step=0.01", "algorithm.entropy_target.plan", "algorithm.entropy_step=0.005"],
    ),
    "a bound without a target": (
        ["algorithm.entropy_maximum=0.2"],
        ["algorithm.entropy_maximum=0.2", "entropy_target"],
    ),
    "a negative bonus": (["algorithm.entropy_bonus.image=-0.1"], ["algorithm.entropy_bonus.image=-0.1", ">= 0"]),
    "a mistyped key": (["algorithm.entropy_bonus.plans=1"], ["plans"]),
    "a mistyped share": (["algorithm.level_shares.picture=1"], ["picture"]),
}


def test_steering_may_be_set_beside_a_target() -> None:
    steered = ["algorithm.entropy_target.image=1", "algorithm.entropy_step=0.01", "algorithm.entropy_maximum=0.2"]
    assert build_algorithm(cli.compose(steered)).name == "grpo"


@pytest.mark.parametrize("name", REFUSED)
def test_senseless_settings_end_before_any_weight_is_loaded(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from src import build

    def loaded(config: Any) -> Any:
        raise AssertionError("a weight was loaded")

    monkeypatch.setattr(build, "build_policy", loaded)
    given, words = REFUSED[name]
    first = [one for one in given if one.startswith("algorithm=")]
    rest = [one for one in given if not one.startswith("algorithm=")]
    run = tmp_path / "run"
    assert cli.run(COMMAND, [*first, f"run.dir={run}", "logger=csv", *rest]) == 2
    said = capsys.readouterr().err
    for word in words:
        assert word in said
    assert not (run / "config.yaml").exists()


def test_a_reference_that_cannot_move_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    world = write_world(tmp_path)
    given = [one for one in overrides(world, tmp_path / "run") if not one.startswith("model.path")]
    toy = ["~model", "+model._target_=tests.policies.toy.ToyPolicy", "algorithm.reference_refresh=2"]
    assert cli.run(COMMAND, [*given, *toy]) == 2
    said = capsys.readouterr().err
    assert "algorithm.reference_refresh=2" in said
    assert "ToyPolicy" in said


FIGURES = (
    "reward",
    "reward_std",
    "groups_without_signal",
    "plan/ended",
    "plan/length",
    "plan/tokens",
    "image/tokens",
    "plan/entropy",
    "plan/entropy_bonus",
    "image/surrogate",
)


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["reinforce_pp", "reinforce_pp_baseline"])
def test_two_processes_train_as_one(algorithm: str, tmp_path: Path) -> None:
    """Rewards compared over both ranks, each refilling its own groups, bonuses steered by the entropy of both."""
    world = write_world(tmp_path)
    settings: dict[str, Any] = {
        "algorithm": algorithm,
        "algorithm__entropy_target__plan": 5.0,
        "algorithm__unfinished_plan_penalty": 0.0,
        "algorithm__overlong_penalty": 0.3,
        "algorithm__overlong_margin": 4,
        "rollout__prompts_per_step": 4,
        "trainer__max_steps": 3,
    }
    if algorithm == "reinforce_pp_baseline":
        settings |= {"algorithm__dynamic_sampling": "true", "algorithm__signal_tolerance": 0.002}
    for name, devices in (("one", 1), ("two", 2)):
        given = command(world, tmp_path / name, **{**settings, "trainer__devices": devices})
        done = run_process(given, ROOT)
        assert done.returncode == 0, done.stderr[-2000:]
    one, two = checkpoint_weights(tmp_path / "one"), checkpoint_weights(tmp_path / "two")
    assert one.keys() == two.keys()
    for name in one:
        torch.testing.assert_close(two[name], one[name], atol=2e-4, rtol=1e-3)
    rows = [{int(row["step"]): row for row in metrics_rows(tmp_path / run)} for run in ("one", "two")]
    more = ("kl_penalty",) if algorithm == "reinforce_pp" else ("refill/rounds", "refill/groups", "refill/dropped")
    for step in (1, 2, 3):
        for figure in (*FIGURES, *more):
            first, second = (float(run[step][figure]) for run in rows)
            assert second == pytest.approx(first, rel=1e-3, abs=1e-4), figure
