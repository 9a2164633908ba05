"""The typed schema of every run, registered with Hydra's ConfigStore, and the checks types cannot make.

Each group file under configs/ starts with ``defaults: [<schema>, _self_]``: with the schema underneath, a
mistyped key or a value of the wrong type fails while the config is composed; without it Hydra would add
the key silently. A part that is not ours (another policy, a data set) brings its own keys behind its
``_target_`` and needs no schema.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, OmegaConf

ROOT = Path(__file__).resolve().parent.parent
CONFIGS = ROOT / "configs"


class UserError(Exception):
    """The user's input is wrong; the message names file or key, value and fix. Entry points exit with 2."""


@dataclass
class RunConfig:
    """Where a run lives and what its noise is keyed by."""

    name: str = "run"
    root: str = "runs"
    dir: str | None = None  # None: <root>/<name>-<time>
    seed: int = 0


@dataclass
class LoraConfig:
    """Adapters on the language model's projections; see `src.policies.lora.LoraSettings`."""

    r: int = 16
    alpha: float = 32.0
    dropout: float = 0.0
    targets: list[str] = field(
        default_factory=lambda: ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    )


@dataclass
class JanusConfig:
    """A Janus checkpoint directory in transformers' format."""

    _target_: str = "src.policies.load.load_janus"
    path: str = MISSING
    dtype: str = "auto"  # auto | float32 | bfloat16
    adapter: str | None = None  # a PEFT folder to go on from
    lora: LoraConfig | None = field(default_factory=LoraConfig)  # null: train the language model itself
    merge_rollout: bool | None = None  # decode with the adapter merged; null: in float32 only


@dataclass
class RewardsConfig:
    """Experts by the name they have in reports; weight 0 only monitors."""

    experts: dict[str, Any] = MISSING
    weights: dict[str, float] = field(default_factory=dict)
    combine: str = "sum"


@dataclass
class DataConfig:
    """A folder with train / validation / test JSONL files, or one file that is split by itself."""

    _target_: str = "src.data.module.PromptDataModule"
    path: str = MISSING


@dataclass
class LevelSamplingConfig:
    """How one level's tokens are drawn."""

    temperature: float = 1.0


@dataclass
class RolloutConfig:
    """Groups and sampling. `prompts_per_step` counts all ranks; `max_plan_tokens` the end token too."""

    group_size: int = 8
    prompts_per_step: int = 8
    guidance_scale: float = 5.0
    max_plan_tokens: int = 256
    max_rows: int | None = None  # rollouts decoded at once; null: all
    plan: LevelSamplingConfig = field(default_factory=LevelSamplingConfig)
    image: LevelSamplingConfig = field(default_factory=LevelSamplingConfig)


@dataclass
class AlgorithmConfig:
    """The objective and its constants; docs/ALGORITHMS.md has the formulas."""

    name: str = "grpo"
    beta: float = 0.01
    kl: str = "k3"
    logp: str = "conditional"  # which log-probs the image level trains: guided | conditional
    clip_low: float = 0.2
    clip_high: float = 0.2
    updates_per_rollout: int = 1
    unfinished_plan_penalty: float = 0.0  # taken off the reward of a plan that never ends


@dataclass
class OptimConfig:
    """AdamW (arXiv 1711.05101) and its schedule. `microbatch` counts rollouts a backward; null: all at once."""

    lr: float = 1e-6
    betas: list[float] = field(default_factory=lambda: [0.9, 0.95])
    weight_decay: float = 0.0
    warmup_steps: int = 0
    schedule: str = "constant"  # constant | linear | cosine
    final_lr_fraction: float = 0.1
    grad_clip: float = 1.0
    microbatch: int | None = None


@dataclass
class TrainerConfig:
    """Passed on to Lightning's Trainer; auto picks what the machine has."""

    max_steps: int = 1600
    accelerator: str = "auto"
    devices: Any = "auto"
    num_nodes: int = 1
    strategy: str = "auto"
    precision: str = "auto"
    progress_bar: bool = True


@dataclass
class LoggerConfig:
    """Besides the run folder's metrics.csv, which is always written."""

    _target_: str | None = None


@dataclass
class EvaluationConfig:
    """Validation while training, and the report on the test prompts before and after it."""

    every: int = 20  # optimiser steps between validations
    batch_size: int = 128
    validation_prompts: int | None = None  # null: all
    test_prompts: int | None = None
    samples_per_prompt: int = 1
    seed: int = 1234
    picture_prompts: int = 12
    monitor: str = "reward"  # the validation figure the best checkpoint is chosen by


@dataclass
class CheckpointConfig:
    """How often the resumable state is written; `rollouts_every` samples plans and scores into rollouts.jsonl."""

    every: int = 20
    rollouts_every: int = 10


@dataclass
class Config:
    """One run."""

    run: RunConfig = field(default_factory=RunConfig)
    model: Any = MISSING
    rewards: Any = MISSING
    data: Any = MISSING
    algorithm: Any = MISSING
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    trainer: Any = MISSING
    logger: Any = MISSING
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    kernels: str = "auto"
    resume: str | None = None  # auto, or the path of a run folder or checkpoint


# The schema under each group's files; a part with keys of its own brings them behind its ``_target_``.
GROUP_SCHEMAS: dict[str, type] = {
    "model": JanusConfig,
    "rewards": RewardsConfig,
    "data": DataConfig,
    "algorithm": AlgorithmConfig,
    "trainer": TrainerConfig,
}


def register() -> None:
    """Put the schema into Hydra's ConfigStore and the ``${root:}`` resolver into OmegaConf; idempotent."""
    store = ConfigStore.instance()
    store.store(name="schema", node=Config)
    for group, schema in GROUP_SCHEMAS.items():
        store.store(group=group, name="schema", node=schema)
    OmegaConf.register_new_resolver("root", lambda: str(ROOT), replace=True)


Check = tuple[Callable[[Any], bool], str]  # does the value hold, and what was expected

_POSITIVE: Check = (lambda v: v > 0, "a number > 0")
_NOT_NEGATIVE: Check = (lambda v: v >= 0, "a number >= 0")
_AT_LEAST_ONE: Check = (lambda v: v >= 1, "an integer >= 1")


def _one_of(*choices: str) -> Check:
    return lambda value: value in choices, "one of " + ", ".join(choices)


CHECKS: dict[str, Check] = {
    "run.seed": _NOT_NEGATIVE,
    "rollout.group_size": (lambda v: v >= 2, "an integer >= 2 (a group is compared within itself)"),
    "rollout.prompts_per_step": _AT_LEAST_ONE,
    "rollout.guidance_scale": (lambda v: v >= 1, "a number >= 1 (1 is no guidance)"),
    "rollout.max_plan_tokens": _AT_LEAST_ONE,
    "rollout.max_rows": _AT_LEAST_ONE,
    "rollout.plan.temperature": _POSITIVE,
    "rollout.image.temperature": _POSITIVE,
    "algorithm.beta": _NOT_NEGATIVE,
    "algorithm.kl": _one_of("k1", "k2", "k3"),
    "algorithm.logp": _one_of("guided", "conditional"),
    "algorithm.clip_low": (lambda v: 0 < v <= 1, "a number in (0, 1]"),
    "algorithm.clip_high": _POSITIVE,
    "algorithm.updates_per_rollout": _AT_LEAST_ONE,
    "algorithm.unfinished_plan_penalty": _NOT_NEGATIVE,
    "optim.lr": _POSITIVE,
    "optim.weight_decay": _NOT_NEGATIVE,
    "optim.warmup_steps": _NOT_NEGATIVE,
    "optim.schedule": _one_of("constant", "linear", "cosine"),
    "optim.final_lr_fraction": (lambda v: 0 <= v <= 1, "a number in [0, 1]"),
    "optim.grad_clip": _POSITIVE,
    "optim.microbatch": _AT_LEAST_ONE,
    "optim.betas": (lambda v: len(v) == 2 and all(0 <= b < 1 for b in v), "two numbers in [0, 1)"),
    "trainer.max_steps": _AT_LEAST_ONE,
    "trainer.num_nodes": _AT_LEAST_ONE,
    "trainer.precision": _one_of("auto", "32-true", "bf16-true", "bf16-mixed"),
    "evaluation.every": _AT_LEAST_ONE,
    "evaluation.batch_size": _AT_LEAST_ONE,
    "evaluation.validation_prompts": _AT_LEAST_ONE,
    "evaluation.test_prompts": _AT_LEAST_ONE,
    "evaluation.samples_per_prompt": _AT_LEAST_ONE,
    "evaluation.picture_prompts": _AT_LEAST_ONE,
    "checkpoint.every": _AT_LEAST_ONE,
    "checkpoint.rollouts_every": _AT_LEAST_ONE,
    "model.dtype": _one_of("auto", "float32", "bfloat16"),
    "model.lora.r": _AT_LEAST_ONE,
    "model.lora.alpha": _POSITIVE,
    "model.lora.dropout": (lambda v: v == 0, "0 (with dropout the first update's ratio would not be 1)"),
    "rewards.combine": _one_of("sum", "mean"),
    "kernels": _one_of("auto", "triton", "torch"),
}


def _refuse_unknown(node: Any, schema: type, prefix: str) -> None:
    """Raise UserError for keys outside of the schema: Hydra's ``+key=value`` adds them past every type."""
    known = {item.name: item for item in fields(schema)}
    for key in node:
        if key == "hydra" and not prefix:
            continue
        if key not in known:
            raise UserError(f"{prefix}{key}: no such key; there are {', '.join(known)}")
        default = known[key].default_factory
        if isinstance(default, type) and is_dataclass(default) and OmegaConf.is_config(node[key]):
            _refuse_unknown(node[key], default, f"{prefix}{key}.")


def validate(config: Any) -> None:
    """Check every range in CHECKS that the config has a value for.

    Raises:
        UserError: naming key, value and what is expected, for the first value out of range.
    """
    if "rollout" in config:
        _refuse_unknown(config, Config, "")
    for key, (holds, expected) in CHECKS.items():
        value = OmegaConf.select(config, key, default=None)
        if value is not None and not holds(value):
            raise UserError(f"{key}={value}: expected {expected}")
