"""The typed config: every shipped file composes, and what is wrong is told by its key."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from src.build import build_policy, engine_settings
from src.cli.compose import compose
from src.config.checks import validate
from src.config.errors import UserError
from src.config.schema import CONFIGS, ROOT
from src.policies.base import EngineSettings
from src.rollout.levels import RolloutSettings
from src.values import Sampling

TRAINING_GROUPS = ("model", "rewards", "data", "algorithm", "trainer", "logger", "experiment")
OPTIONS = sorted((group, path.stem) for group in TRAINING_GROUPS for path in (CONFIGS / group).glob("*.yaml"))


@pytest.mark.parametrize(("group", "option"), OPTIONS, ids=lambda value: value)
def test_every_shipped_option_composes_and_validates(group: str, option: str) -> None:
    path = {"model": ["model.path=somewhere"], "data": ["data.path=somewhere"]}.get(group, [])
    config = compose([f"{group}={option}", *path])
    assert config.run.seed == 0
    assert config.rollout.group_size >= 2
    OmegaConf.to_container(config, resolve=True, throw_on_missing=group in ("experiment", "trainer", "algorithm"))


def test_there_is_something_to_compose() -> None:
    assert ("experiment", "bicot_lora") in OPTIONS
    assert ("algorithm", "grpo") in OPTIONS


def test_the_main_job_is_what_the_design_says() -> None:
    config = compose(["experiment=bicot_lora"])
    assert (config.rollout.group_size, config.rollout.prompts_per_step) == (8, 8)
    assert config.rollout.guidance_scale == 1.5
    assert (config.algorithm.name, config.algorithm.logp, config.algorithm.kl) == ("grpo", "guided", "k3")
    assert config.algorithm.beta > 0
    assert list(config.optim.betas) == [0.9, 0.95]
    assert config.model.path.startswith(str(ROOT)), "found from any directory"
    assert (Path(config.data.path) / "train.jsonl").is_file()


def test_each_level_is_sampled_as_its_keys_say() -> None:
    keys = ["guidance_scale=3", "plan.temperature=0.5", "plan.top_k=7", "image.top_k=40", "image.top_p=0.9"]
    settings = RolloutSettings.of(compose([f"rollout.{key}" for key in keys]).rollout)
    assert settings.plan == Sampling(0.5, top_k=7)
    assert settings.image == Sampling(1.0, 3.0, top_k=40, top_p=0.9)
    untouched = RolloutSettings.of(compose([]).rollout)
    assert (untouched.plan, untouched.image) == (Sampling(), Sampling(1.0, 5.0))


def test_the_engine_follows_the_config(monkeypatch: pytest.MonkeyPatch) -> None:
    """`kernels` and `rollout.graph` reach the engine's settings, and the policy that is built."""
    assert engine_settings(compose(["experiment=bicot_lora"])) == EngineSettings()
    config = compose(["experiment=bicot_lora", "kernels=torch", "rollout.graph=false", "rollout.max_rows=5"])
    assert build_policy(config).engine == EngineSettings(kernels="torch", graph=False)
    assert RolloutSettings.of(config.rollout).max_rows == 5
    with pytest.raises(UserError, match=r"rollout\.graph=true: CUDA graphs need a GPU"):
        engine_settings(compose(["rollout.graph=true", "trainer.accelerator=cpu"]))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert engine_settings(compose(["rollout.graph=true"])).graph is True


def test_the_published_run_stands_in_the_defaults() -> None:
    """METHOD.md, "Hyper-parameters of the published run", where no experiment says otherwise."""
    config = compose([])
    assert config.rollout.group_size == 8
    assert config.rollout.guidance_scale == 5
    assert config.algorithm.beta == 0.01
    assert config.optim.lr == 1e-6
    assert config.trainer.max_steps == 1600
    assert config.rollout.image.temperature == config.rollout.plan.temperature == 1


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("rollout.grop_size=4", ["grop_size"]),
        ("algorithm.betta=0.1", ["betta"]),
        ("optim.lrate=1", ["lrate"]),
        ("model.lora.rank=4", ["rank"]),
        ("model.pth=x", ["pth"]),
        ("+algorithm.extra=1", ["extra"]),
        ("+rollout.grop_size=4", ["grop_size"]),
        ("algorithm.beta=high", ["beta", "high"]),
        ("rollout.group_size=2.5", ["group_size", "2.5"]),
        ("model.lora.r=eight", ["r", "eight"]),
        ("trainer.max_steps=soon", ["max_steps", "soon"]),
        ("run.seed=abc", ["seed", "abc"]),
        ("trainer.progress_bar=maybe", ["progress_bar", "maybe"]),
        ("experiment=nonesuch", ["nonesuch", "bicot_lora"]),
        ("algorithm=nonesuch", ["nonesuch", "grpo"]),
        ("model=nonesuch", ["nonesuch", "janus_tiny"]),
        ("rollout.group_size", ["rollout.group_size"]),
    ],
)
def test_a_mistyped_key_type_or_option_is_named(override: str, words: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        compose(["experiment=bicot_lora", override])
    message = str(caught.value)
    assert all(word in message for word in words), message
    assert "Traceback" not in message


OUT_OF_RANGE = [
    ("rollout.group_size", "1"),
    ("rollout.group_size", "0"),
    ("rollout.prompts_per_step", "0"),
    ("rollout.guidance_scale", "-2"),
    ("rollout.guidance_scale", "0.5"),
    ("rollout.max_plan_tokens", "0"),
    ("rollout.max_rows", "0"),
    ("rollout.graph", "sometimes"),
    ("rollout.graph", "1"),
    ("rollout.plan.temperature", "0"),
    ("rollout.image.temperature", "-1"),
    ("rollout.plan.top_k", "0"),
    ("rollout.image.top_k", "-5"),
    ("rollout.plan.top_p", "0"),
    ("rollout.image.top_p", "1.1"),
    ("rollout.image.top_p", "nan"),
    ("algorithm.beta", "-1"),
    ("algorithm.beta", "nan"),
    ("algorithm.kl", "k4"),
    ("algorithm.logp", "both"),
    ("algorithm.clip_low", "-0.1"),
    ("algorithm.clip_low", "1.5"),
    ("algorithm.clip_high", "-0.1"),
    ("algorithm.updates_per_rollout", "0"),
    ("algorithm.unfinished_plan_penalty", "-1"),
    ("optim.lr", "0"),
    ("optim.lr", "nan"),
    ("optim.weight_decay", "-0.1"),
    ("optim.warmup_steps", "-1"),
    ("optim.schedule", "sometimes"),
    ("optim.final_lr_fraction", "1.5"),
    ("optim.grad_clip", "0"),
    ("optim.microbatch", "0"),
    ("optim.activation_checkpointing", "sometimes"),
    ("optim.activation_checkpointing", "1"),
    ("optim.betas", "[0.9]"),
    ("optim.betas", "[0.9,1.0]"),
    ("trainer.max_steps", "0"),
    ("trainer.max_steps", "-1"),
    ("trainer.precision", "8-bit"),
    ("trainer.precision", "bf16-true"),  # would round the adapters, whose updates vanish, and the rotary frequencies
    ("evaluation.every", "0"),
    ("evaluation.batch_size", "0"),
    ("evaluation.test_prompts", "0"),
    ("evaluation.picture_prompts", "0"),
    ("checkpoint.every", "0"),
    ("model.dtype", "float8"),
    ("model.lora.r", "0"),
    ("model.lora.alpha", "0"),
    ("model.lora.dropout", "0.1"),
    ("rewards.combine", "max"),
    ("rewards.on_error", "ignore"),
    ("rewards.remote.timeout", "0"),
    ("rewards.remote.retries", "-1"),
    ("rewards.remote.backoff", "0"),
    ("rewards.watch.window", "9"),
    ("rewards.watch.threshold", "0"),
    ("kernels", "cuda"),
    ("run.seed", "-1"),
]


@pytest.mark.parametrize(("key", "value"), OUT_OF_RANGE)
def test_values_out_of_range_are_named_with_what_is_expected(key: str, value: str) -> None:
    with pytest.raises(UserError) as caught:
        compose(["experiment=bicot_lora", f"{key}={value}"])
    message = str(caught.value)
    assert key in message
    assert "expected" in message
    assert "\n" not in message.strip()


@pytest.mark.parametrize(
    ("key", "value"),
    [("optim.lr", "inf"), ("algorithm.beta", "inf"), ("optim.grad_clip", "nan"), ("rollout.guidance_scale", "inf")],
)
def test_numbers_that_are_none_are_refused(key: str, value: str) -> None:
    with pytest.raises(UserError, match=key):
        compose(["experiment=bicot_lora", f"{key}={value}"])


@pytest.mark.parametrize("value", ["null", "3"])
def test_null_means_no_limit(value: str) -> None:
    config = compose(["experiment=bicot_lora", f"optim.microbatch={value}", f"evaluation.test_prompts={value}"])
    assert config.optim.microbatch == (None if value == "null" else 3)


def test_validate_is_what_catches_it() -> None:
    config = compose(["experiment=bicot_lora"])
    OmegaConf.set_struct(config, False)
    config.rollout.group_size = 1
    with pytest.raises(UserError, match=r"rollout\.group_size=1"):
        validate(config)


def test_told_to_use_the_cpu_nothing_is_chosen_for_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from src import build

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert build.device(compose(["experiment=bicot_lora"])).type == "cuda"
    config = compose(["experiment=bicot_lora", "trainer.accelerator=cpu"])
    assert build.device(config).type == "cpu"
    assert build.build_operations(config).name == "torch"
    assert next(build.build_policy(config).parameters()).dtype == torch.float32
