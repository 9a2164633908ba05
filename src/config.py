"""The typed schema of every run, for Hydra's ConfigStore; `src.config_checks` has what types cannot say.

Each group file under configs/ starts with ``defaults: [<schema>, _self_]``: with the schema underneath, a
mistyped key or a value of the wrong type fails while the config is composed; without it Hydra would add
the key silently. A part that is not ours (another policy, a data set) brings its own keys behind its
``_target_`` and needs no schema.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import MISSING

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
    """A Janus checkpoint, in transformers' layout or in the one it was released in."""

    _target_: str = "src.policies.load.load_janus"
    path: str | None = None
    repository: str | None = None  # where there is no path: the Hugging Face cache, else the hub
    dtype: str = "auto"  # auto | float32 | bfloat16
    adapter: str | None = None  # a PEFT folder to go on from
    lora: LoraConfig | None = field(default_factory=LoraConfig)  # null: train the language model itself
    merge_rollout: bool | None = None  # decode with the adapter merged; null: in float32 on a CPU


@dataclass
class RemoteConfig:
    """A server of experts (``python -m src.serve_rewards``); docs/SERVING.md."""

    url: str | None = None  # http://host:port; the experts without an entry in rewards.devices are asked there
    timeout: float = 120.0  # seconds without an answer
    retries: int = 8
    backoff: float = 1.0  # seconds before the first retry; doubled for each further one, up to 30
    token_file: str | None = None  # holds the server's token; null: the environment's BICOT_REWARDS_TOKEN, if set


@dataclass
class WatchConfig:
    """When a run is warned that its reward rises while a monitor falls; docs/REWARDS.md."""

    window: int = 100  # prompt batches over which the trends are taken
    threshold: float = 4.0  # standard errors by which both have to move


@dataclass
class RewardsConfig:
    """Experts by the name they have in reports; weight 0 only monitors."""

    experts: dict[str, Any] = MISSING
    weights: dict[str, float] = field(default_factory=dict)
    combine: str = "sum"  # sum | mean | min | product
    faithful: bool = False  # scores as the released code gives them, faults included, where an expert has that
    normalise: Any = "none"  # none | group | batch | running, or one of them by expert
    on_error: str = "raise"  # raise | drop: an expert that fails leaves the whole group
    devices: dict[str, str] = field(default_factory=dict)  # by expert: cpu, cuda:1, offload; else the trainer's
    remote: RemoteConfig = field(default_factory=RemoteConfig)
    watch: WatchConfig = field(default_factory=WatchConfig)


@dataclass
class DataConfig:
    """A folder with train / validation / test JSONL files, or one file or data set that is split by itself."""

    _target_: str = "src.data.module.PromptDataModule"
    path: str | None = None  # a folder, or a .jsonl or .txt file
    dataset: str | None = None  # instead: a name for the package `datasets` (the hub's, or a folder it can read)
    dataset_config: str | None = None
    split: str = "train"  # of the data set
    columns: dict[str, str] = field(default_factory=dict)  # field of a prompt record: column of the data set
    held_out: float = 0.05  # of one file or data set: the share that goes to validation, and as much to test
    on_error: str = "raise"  # raise | skip bad lines, with a count


@dataclass
class LevelSamplingConfig:
    """How one level's tokens are drawn. Truncated rollouts are off-policy: see docs/ALGORITHMS.md."""

    temperature: float = 1.0
    top_k: int | None = None  # only the k most probable tokens; null: all
    top_p: float | None = None  # only the most probable ones that make up this share; null: all


@dataclass
class EngineConfig:
    """Switches of the rollout engine, to measure what each is worth; see `src.policies.base.EngineSettings`."""

    shared_prefix: bool = True
    fused_projections: bool = True
    fused_step: bool = True
    fused_sampling: bool = True
    filled_attention: bool = True
    reuse_cache: bool = True


@dataclass
class RolloutConfig:
    """Groups and sampling. `prompts_per_step` counts all ranks; `max_plan_tokens` the end token too."""

    group_size: int = 8
    prompts_per_step: int = 8
    guidance_scale: float = 5.0
    max_plan_tokens: int = 256
    plan: LevelSamplingConfig = field(default_factory=LevelSamplingConfig)
    image: LevelSamplingConfig = field(default_factory=LevelSamplingConfig)
    max_rows: int | None = None  # rollouts decoded at once; null: what fits the GPU's free memory, on a CPU all
    graph: Any = "auto"  # replay the token step as a CUDA graph: auto (on a GPU) | true | false
    engine: EngineConfig = field(default_factory=EngineConfig)


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
    """AdamW (arXiv 1711.05101), its schedule, and how a step is cut to fit into memory (docs/MEMORY.md)."""

    lr: float = 1e-6
    betas: list[float] = field(default_factory=lambda: [0.9, 0.95])
    weight_decay: float = 0.0
    warmup_steps: int = 0
    schedule: str = "constant"  # constant | linear | cosine
    final_lr_fraction: float = 0.1
    grad_clip: float = 1.0
    max_grad_norm: float | None = None  # a larger norm (before clipping) skips the step, as one that is not finite does
    max_skipped_steps: int = 5  # in a row; one more ends the run
    microbatch: int | None = None  # rollouts a backward; null: what fits a GPU by the estimate, on a CPU all
    split_levels: bool | None = None  # a backward is one level of them; null: where activations are checkpointed
    activation_checkpointing: Any = "auto"  # auto: where a GPU cannot hold a step without | true | false


@dataclass
class TrainerConfig:
    """Passed on to Lightning's Trainer; auto picks what the machine has."""

    max_steps: int = 1600
    accelerator: str = "auto"
    devices: Any = "auto"
    num_nodes: int = 1
    strategy: str = "auto"
    precision: str = "auto"  # auto | 32-true (the weights' own dtype) | bf16-mixed
    progress_bar: bool = True


@dataclass
class LoggerConfig:
    """MLflow, besides the run folder's metrics.csv, which is always written; Lightning's loggers bring own keys."""

    _target_: str = "src.loggers.mlflow_logger.MLflowLogger"
    tracking_uri: str | None = None  # null: MLFLOW_TRACKING_URI, else sqlite:///<run.root>/mlflow.db
    experiment: str = "bicot_grpo"
    parent: str | None = None  # id of the MLflow run this one stands under
    system_metrics_every: float | None = 10.0  # seconds between samples of CPU, memory, disk, GPU; null: none


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
class ResumeConfig:
    """What to go on from. On the command line ``resume=X`` is short for ``resume.path=X``."""

    path: str | None = None  # auto, or the path of a run folder or checkpoint
    allow_changes: bool = False  # go on with other settings than the run was made with


@dataclass
class WatchdogConfig:
    """When a run that does not go on is ended; docs/RELIABILITY.md."""

    seconds: float | None = 1800.0  # in one phase (a rollout, an expert's scores, a microbatch); null: never
    rank_seconds: float | None = 60.0  # without a sign of life from another rank; null: not watched


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
    plugins: list[str] = field(default_factory=list)  # packages whose code `_target_` may name; docs/EXTENDING.md
    resume: ResumeConfig = field(default_factory=ResumeConfig)
    watchdog: WatchdogConfig = field(default_factory=WatchdogConfig)


# The schema under each group's files; a part with keys of its own brings them behind its ``_target_``.
GROUP_SCHEMAS: dict[str, type] = {
    "model": JanusConfig,
    "rewards": RewardsConfig,
    "data": DataConfig,
    "algorithm": AlgorithmConfig,
    "trainer": TrainerConfig,
    "logger": LoggerConfig,
}
