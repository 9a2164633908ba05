"""The published recipe and its one-card form: they say what was published, and run with tiny stand-ins."""

from __future__ import annotations

import json
from dataclasses import asdict, is_dataclass
from pathlib import Path

import pytest
from omegaconf import DictConfig, OmegaConf

from src.build import build_rewards
from src.cli.compose import compose
from src.train import COMMAND, cli
from tests.conftest import ROOT
from tests.rewards.tiny_experts import detector, hps, vqa

PROMPTS = ROOT / "tests" / "data" / "prompts.jsonl"
EXPERTS = {"hps": hps, "detector": detector, "vqa": vqa}


def composed(*overrides: str) -> DictConfig:
    config = compose(list(overrides))
    assert isinstance(config, DictConfig)
    return config


def test_the_published_run_is_what_was_published() -> None:
    config = composed("experiment=t2i_r1", f"data.path={PROMPTS}")
    published = {
        "model.repository": "deepseek-community/Janus-Pro-7B",
        "model.lora": None,
        "algorithm.name": "grpo",
        "algorithm.beta": 0.01,
        "algorithm.kl": "k3",
        "algorithm.logp": "conditional",
        "algorithm.updates_per_rollout": 1,
        "rollout.group_size": 8,
        "rollout.prompts_per_step": 16,
        "rollout.guidance_scale": 5.0,
        "rollout.image.temperature": 1.0,
        "rollout.max_plan_tokens": 1024,
        "optim.lr": 1e-6,
        "trainer.max_steps": 1600,
        "rewards.combine": "sum",
        "rewards.faithful": False,
    }
    assert {key: OmegaConf.select(config, key) for key in published} == published
    assert list(config.rewards.experts) == ["hps", "detector", "vqa"]


def test_the_one_card_form_differs_where_it_says() -> None:
    published = composed("experiment=t2i_r1", f"data.path={PROMPTS}")
    one_card = composed("experiment=janus_pro_7b_lora", f"data.path={PROMPTS}")
    assert one_card.model.lora.r == 32
    assert one_card.rollout.prompts_per_step * one_card.rollout.group_size == 16
    for key in ("algorithm", "rewards", "evaluation", "data"):
        assert one_card[key] == published[key], key


@pytest.mark.parametrize("faithful", [False, True])
def test_one_switch_for_every_faithful_score(faithful: bool) -> None:
    config = composed("experiment=t2i_r1", f"data.path={PROMPTS}", f"rewards.faithful={str(faithful).lower()}")
    assert [config.rewards.experts[name].faithful for name in ("detector", "vqa")] == [faithful, faithful]
    for name in ("detector", "vqa"):
        alone = composed(f"rewards={name}", f"rewards.faithful={str(faithful).lower()}")
        assert alone.rewards.experts[name].faithful is faithful
    shapes = composed("experiment=bicot_lora", f"rewards.faithful={str(faithful).lower()}")
    assert build_rewards(shapes).truncate is faithful, "how pictures are shown to experts"


def test_without_prompts_the_key_to_set_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(COMMAND, ["experiment=t2i_r1"]) == 2
    assert "data.path" in capsys.readouterr().err


def stand_ins(folder: Path) -> list[str]:
    """Tiny weights for every expert, the embedded checkpoint for Janus-Pro, a few prompts."""
    overrides = [f"model.path={ROOT / 'src' / 'shapes' / 'checkpoint'}", f"data.path={PROMPTS}"]
    for name, expert in EXPERTS.items():
        home = folder / name
        home.mkdir(parents=True)
        for key, value in expert.write(home).items():
            overrides.append(f"++rewards.experts.{name}.{key}={spelled(value)}")
    return overrides


def spelled(value: object) -> str:
    """A constructor's argument on the command line; a dataclass as what Hydra makes it of."""
    if not is_dataclass(value):
        return str(value)
    kind = type(value)
    values = {"_target_": f"{kind.__module__}.{kind.__qualname__}", **asdict(value)}  # type: ignore[arg-type]
    return "{" + ",".join(f"{key}:{item}" for key, item in values.items()) + "}"


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["t2i_r1", "janus_pro_7b_lora"])
def test_two_steps_with_stand_ins(recipe: str, tmp_path: Path) -> None:
    """Everything as in the recipe but sizes: rewards of all three experts train both levels."""
    small = [
        "rollout.prompts_per_step=2",
        "rollout.group_size=2",
        "rollout.max_plan_tokens=8",
        "trainer.max_steps=2",
        "trainer.accelerator=cpu",
        "trainer.devices=1",
        "trainer.progress_bar=false",
        "evaluation.validation_prompts=2",
        "evaluation.test_prompts=2",
        "evaluation.picture_prompts=2",
        "logger=csv",
    ]
    run = tmp_path / "run"
    arguments = [f"experiment={recipe}", *stand_ins(tmp_path / "weights"), *small, f"run.dir={run}"]
    assert cli.run(COMMAND, arguments) == 0
    summary = json.loads((run / "summary.json").read_text())
    assert summary["steps"] == 2
    header = (run / "metrics.csv").read_text().splitlines()[0].split(",")
    assert {"hps/mean", "detector/mean", "vqa/mean", "plan/kl", "image/kl"} <= set(header)
    assert (run / "adapter" / "adapter_model.safetensors").is_file() is (recipe == "janus_pro_7b_lora")


def test_the_tiny_experts_are_those_of_the_recipe(tmp_path: Path) -> None:
    ensemble = build_rewards(composed("experiment=t2i_r1", *stand_ins(tmp_path)))
    assert ensemble.names == ("hps", "detector", "vqa")
