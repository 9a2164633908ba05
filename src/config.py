"""The typed schema of every run, registered with Hydra's ConfigStore, and the checks types cannot make.

Each group file under configs/ starts with ``defaults: [<schema>, _self_]``: with the schema underneath, a
mistyped key or a value of the wrong type fails while the config is composed; without it Hydra would add
the key silently. A part that is not ours (another policy, a data set) brings its own keys behind its
``_target_`` and needs no schema.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields, is_dataclass
from math import isfinite
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
    path: str | None = None
    repository: str | None = None  # looked up in the local Hugging Face cache where there is no path
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
    held_out: float = 0.05  # of one file: the share that goes to validation, and as much to test


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
    plan: LevelSamplingConfig = field(default_factory=LevelSamplingConfig)
    image: LevelSamplingConfig = field(default_factory=LevelSamplingConfig)


@dataclass
class LevelWeights:
    """A factor on each level's advantages."""

    plan: float = 1.0
    image: float = 1.0


@dataclass
class LevelShares:
    """Each level's weight in the loss; both or neither."""

    plan: float | None = None
    image: float | None = None


@dataclass
class LevelBonus:
    """The weight of the entropy in the objective, for each level."""

    plan: float = 0.0
    image: float = 0.0


@dataclass
class LevelTargets:
    """An entropy in nats a token for each level; null: none."""

    plan: float | None = None
    image: float | None = None


@dataclass
class AlgorithmConfig:
    """The objective and its constants; docs/ALGORITHMS.md has the formulas and their sources."""

    name: str = "grpo"
    beta: float = 0.01  # 0: the reference is not run
    kl: str = "k3"  # k1 | k2 | k3 | exact
    kl_in: str = "loss"  # loss | reward (there it is a sum over a rollout's tokens: choose beta far smaller)
    reference_refresh: int | None = None  # optimiser steps between refreshes; null: the reference never moves
    logp: str = "conditional"  # which log-probs the image level trains: guided | conditional
    clip_low: float = 0.2
    clip_high: float = 0.2
    updates_per_rollout: int = 1
    level_weights: LevelWeights = field(default_factory=LevelWeights)  # of the policy term; 0: the KL stays
    level_shares: LevelShares = field(default_factory=LevelShares)  # of the whole loss; null: every token alike
    entropy_bonus: LevelBonus = field(default_factory=LevelBonus)
    entropy_target: LevelTargets = field(default_factory=LevelTargets)  # null: the bonus is fixed
    entropy_step: float = 0.005  # of the steered bonus, an optimiser step
    entropy_maximum: float = 0.1
    correction_cap: float | None = None  # of the importance weights training / sampler; null: no correction
    unfinished_plan_penalty: float = 0.0  # taken off the reward of a plan that never ends
    overlong_penalty: float = 0.0  # taken off at the cap, growing over the last `overlong_margin` tokens
    overlong_margin: int | None = None
    penalties_on: str = "both"  # whose advantages feel a plan's penalties: both | plan
    mask_unfinished: bool = False  # plans that never end are not learned from
    dynamic_sampling: bool = False  # groups without signal are replaced by other prompts', else dropped
    max_refills: int = 3  # rounds of replacing; 0 only drops
    signal_tolerance: float = 0.0  # rewards of a group that differ by no more say nothing


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
    """MLflow, besides the run folder's metrics.csv, which is always written; Lightning's loggers bring own keys."""

    _target_: str = "src.loggers.mlflow_logger.MLflowLogger"
    tracking_uri: str | None = None  # null: MLFLOW_TRACKING_URI, else sqlite:///<run.root>/mlflow.db
    experiment: str = "bicot_grpo"
    parent: str | None = None  # id of the MLflow run this one stands under


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


@dataclass
class SamplingConfig:
    """How pictures are drawn where no run says otherwise; configs/sampling has one file a model."""

    guidance_scale: float = 5.0
    max_plan_tokens: int = 256  # the end token included
    plan_temperature: float = 1.0
    image_temperature: float = 1.0


@dataclass
class GenerateConfig:
    """``python -m src.generate``. `prompts` and `prompts_file` are read off the command line as they are."""

    prompts: Any = None  # one prompt, a list, or - for one a line on standard input
    prompts_file: str | None = None  # .txt with one a line, or .jsonl records
    run: str | None = None  # a run folder: its model, its adapter, its sampling
    adapter: str | None = None  # a PEFT folder for `model`
    base: str | None = None  # where the base checkpoint is now, if it moved
    model: Any = MISSING
    rewards: Any = MISSING
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    temperature: float | None = None  # of both levels
    guidance_scale: float | None = None
    max_plan_tokens: int | None = None
    n: int = 4  # pictures a prompt
    seed: int = 0
    batch_size: int = 64  # pictures decoded at once
    out: str | None = None  # null: outputs/generated-<time>
    overwrite: bool = False


@dataclass
class ExportConfig:
    """``python -m src.export``: of `run`, or of `adapter`."""

    run: str | None = None  # a run folder
    adapter: str | None = None  # a PEFT folder
    base: str | None = None  # where the base checkpoint is now, if it moved
    out: str | None = None
    merge: bool = False
    dtype: str = "auto"  # of a merged checkpoint: auto (the base's) | float32 | bfloat16
    overwrite: bool = False


# The schema under each root config of configs/, by file name.
ROOT_SCHEMAS: dict[str, type] = {"config": Config, "generate": GenerateConfig, "export": ExportConfig}

# The schema under each group's files; a part with keys of its own brings them behind its ``_target_``.
GROUP_SCHEMAS: dict[str, type] = {
    "model": JanusConfig,
    "rewards": RewardsConfig,
    "data": DataConfig,
    "algorithm": AlgorithmConfig,
    "trainer": TrainerConfig,
    "logger": LoggerConfig,
}


def register() -> None:
    """Put the schema into Hydra's ConfigStore and the ``${root:}`` resolver into OmegaConf; idempotent."""
    store = ConfigStore.instance()
    for name, schema in ROOT_SCHEMAS.items():
        store.store(name="schema" if name == "config" else f"{name}_schema", node=schema)
    for group, schema in GROUP_SCHEMAS.items():
        store.store(group=group, name="schema", node=schema)
    store.store(group="sampling", name="schema", node=SamplingConfig)
    OmegaConf.register_new_resolver("root", lambda: str(ROOT), replace=True)


Check = tuple[Callable[[Any], bool], str]  # does the value hold, and what was expected

_POSITIVE: Check = (lambda v: v > 0, "a number > 0")
_NOT_NEGATIVE: Check = (lambda v: v >= 0, "a number >= 0")
_AT_LEAST_ONE: Check = (lambda v: v >= 1, "an integer >= 1")
_SHARE: Check = (
    lambda v: v > 0,
    "a number > 0; to train one level only set algorithm.level_weights, the KL then stays",
)


def _one_of(*choices: str) -> Check:
    return lambda value: value in choices, "one of " + ", ".join(choices)


CHECKS: dict[str, Check] = {
    "run.seed": _NOT_NEGATIVE,
    "rollout.group_size": (lambda v: v >= 2, "an integer >= 2 (a group is compared within itself)"),
    "rollout.prompts_per_step": _AT_LEAST_ONE,
    "rollout.guidance_scale": (lambda v: v >= 1, "a number >= 1 (1 is no guidance)"),
    "rollout.max_plan_tokens": _AT_LEAST_ONE,
    "rollout.plan.temperature": _POSITIVE,
    "rollout.image.temperature": _POSITIVE,
    "algorithm.beta": _NOT_NEGATIVE,
    "algorithm.kl": _one_of("k1", "k2", "k3", "exact"),
    "algorithm.kl_in": _one_of("loss", "reward"),
    "algorithm.reference_refresh": _AT_LEAST_ONE,
    "algorithm.logp": _one_of("guided", "conditional"),
    "algorithm.clip_low": (lambda v: 0 <= v <= 1, "a number in [0, 1]"),
    "algorithm.clip_high": _NOT_NEGATIVE,
    "algorithm.updates_per_rollout": _AT_LEAST_ONE,
    "algorithm.level_weights.plan": _NOT_NEGATIVE,
    "algorithm.level_weights.image": _NOT_NEGATIVE,
    "algorithm.level_shares.plan": _SHARE,
    "algorithm.level_shares.image": _SHARE,
    "algorithm.entropy_bonus.plan": _NOT_NEGATIVE,
    "algorithm.entropy_bonus.image": _NOT_NEGATIVE,
    "algorithm.entropy_target.plan": _NOT_NEGATIVE,
    "algorithm.entropy_target.image": _NOT_NEGATIVE,
    "algorithm.entropy_step": _POSITIVE,
    "algorithm.entropy_maximum": _POSITIVE,
    "algorithm.correction_cap": (lambda v: v > 1, "a number > 1, or null for no correction"),
    "algorithm.unfinished_plan_penalty": _NOT_NEGATIVE,
    "algorithm.overlong_penalty": _NOT_NEGATIVE,
    "algorithm.overlong_margin": _AT_LEAST_ONE,
    "algorithm.penalties_on": _one_of("both", "plan"),
    "algorithm.max_refills": _NOT_NEGATIVE,
    "algorithm.signal_tolerance": _NOT_NEGATIVE,
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
    "model.lora.targets": (lambda v: len(v) > 0, "at least one projection"),
    "data.held_out": (lambda v: 0 < v < 0.5, "a share above 0 and below 0.5"),
    "rewards.combine": _one_of("sum", "mean"),
    "kernels": _one_of("auto", "triton", "torch"),
    # generate and export
    "sampling.guidance_scale": (lambda v: v >= 1, "a number >= 1 (1 is no guidance)"),
    "sampling.max_plan_tokens": _AT_LEAST_ONE,
    "sampling.plan_temperature": _POSITIVE,
    "sampling.image_temperature": _POSITIVE,
    "temperature": _POSITIVE,
    "guidance_scale": (lambda v: v >= 1, "a number >= 1 (1 is no guidance)"),
    "max_plan_tokens": _AT_LEAST_ONE,
    "n": _AT_LEAST_ONE,
    "seed": _NOT_NEGATIVE,
    "batch_size": _AT_LEAST_ONE,
    "dtype": _one_of("auto", "float32", "bfloat16"),
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


def validate(config: Any, root: str = "config") -> None:
    """Check that the root config `root` has no key but its schema's, and every range in CHECKS.

    Raises:
        UserError: naming key, value and what is expected, for the first value out of range.
    """
    _refuse_unknown(config, ROOT_SCHEMAS[root], "")
    for group, schema in GROUP_SCHEMAS.items():
        node = config.get(group) if group in config else None
        # A part behind a target of its own brings its own keys.
        if node is not None and OmegaConf.is_config(node) and node.get("_target_") == getattr(schema, "_target_", None):
            _refuse_unknown(node, schema, f"{group}.")
    for key, (holds, expected) in CHECKS.items():
        value = OmegaConf.select(config, key, default=None)
        if value is None:
            continue
        if (isinstance(value, float) and not isfinite(value)) or not holds(value):
            raise UserError(f"{key}={value}: expected {expected}")
