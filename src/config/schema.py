"""The typed schema of every run, for Hydra's ConfigStore; `src.config.checks` has what types cannot say.

Each group file under configs/ starts with ``defaults: [<schema>, _self_]``: with the schema underneath, a
mistyped key or a value of the wrong type fails while the config is composed; without it Hydra would add
the key silently. A part that is not ours (another policy, a data set) brings its own keys behind its
``_target_`` and needs no schema.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from omegaconf import MISSING, DictConfig, OmegaConf

from src.config.setting import (
    AUTO_OR_SWITCH,
    BACKEND,
    BATCH,
    COUNT,
    DEVICES,
    DTYPE,
    FILE_NAME,
    FROM_ZERO,
    GUIDANCE,
    PAIR,
    SECONDS,
    SEED,
    TEMPERATURE,
    TOP_K,
    TOP_P,
    WEIGHT,
    choice_field,
    not_empty,
    number_field,
    parts_field,
    path_field,
    ruled_field,
    text_field,
)

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / "configs"


@dataclass(frozen=True)
class RunConfig:
    """Where a run lives and what its noise is keyed by."""

    name: str = ruled_field("run", FILE_NAME)
    root: str = path_field("runs")
    dir: str | None = path_field()  # None: <root>/<name>-<time>
    seed: int = number_field(0, **SEED)


# Of Janus's language model: what may get an adapter.
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class LoraConfig:
    """Adapters on the language model's projections; see `src.policies.lora`."""

    r: int = number_field(16, ge=1, le=4096)
    alpha: float = number_field(32.0, ge=1e-3, le=1e4)
    dropout: float = number_field(0.0, ge=0, le=0, why="with dropout the first update's ratio would not be 1")
    targets: list[str] = ruled_field(list(PROJECTIONS), not_empty("projection"))


@dataclass(frozen=True)
class JanusConfig:
    """A Janus checkpoint, in transformers' layout or in the one it was released in."""

    _target_: str = "src.policies.load.load_janus"
    path: str | None = path_field()
    repository: str | None = None  # where there is no path: the Hugging Face cache, else the hub
    dtype: str = ruled_field("auto", DTYPE)
    adapter: str | None = path_field()  # a PEFT folder to go on from
    lora: LoraConfig | None = field(default_factory=LoraConfig)  # null: train the language model itself
    merge_rollout: bool | None = None  # decode with the adapter merged; null: in float32 on a CPU


@dataclass(frozen=True)
class RemoteConfig:
    """A server of experts (``python -m src.serve_rewards``); docs/SERVING.md."""

    url: str | None = text_field()  # http://host:port; the experts without an entry in rewards.devices are asked there
    timeout: float = number_field(120.0, **SECONDS)  # seconds without an answer
    retries: int = number_field(8, ge=0, le=1000)
    backoff: float = number_field(
        1.0, **SECONDS
    )  # seconds before the first retry; doubled for each further one, up to 30
    token_file: str | None = (
        path_field()
    )  # holds the server's token; null: the environment's BICOT_REWARDS_TOKEN, if set


@dataclass(frozen=True)
class WatchConfig:
    """When a run is warned that its reward rises while a monitor falls; docs/REWARDS.md."""

    window: int = number_field(
        100, ge=10, le=10**6, why="a trend needs points"
    )  # prompt batches over which the trends are taken
    threshold: float = number_field(4.0, ge=1e-3, le=1e6)  # standard errors by which both have to move


@dataclass(frozen=True)
class RewardsConfig:
    """Experts by the name they have in reports; weight 0 only monitors."""

    experts: dict[str, Any] = parts_field(
        MISSING,
        path=path_field(),
        tower_path=path_field(),
        tokenizer=path_field(),
        question=text_field(),
        system=text_field(),
        batch_size=number_field(1, **BATCH),
        temperature=number_field(1.0, **TEMPERATURE),
        box_threshold=number_field(0.3, gt=0, lt=1),
        nms_threshold=number_field(0.5, gt=0, lt=1),
        near_distance=number_field(0.5, ge=1e-6, le=1e6, why="in units of the image"),
        short_side=number_field(800, ge=1, le=65536),
        long_side=number_field(1333, ge=1, le=65536),
    )
    weights: dict[str, float] = number_field({}, **WEIGHT, why="0 only monitors")
    combine: str = choice_field("sum", "sum", "mean", "min", "product")
    faithful: bool = False  # pictures shown and scores given as in the released code, faults included
    normalise: Any = "none"  # none | group | batch | running, or one of them by expert
    on_error: str = choice_field("raise", "raise", "drop")  # drop: an expert that fails leaves the whole group
    devices: dict[str, str] = field(default_factory=dict)  # by expert: cpu, cuda:1, offload; else the trainer's
    remote: RemoteConfig = field(default_factory=RemoteConfig)
    watch: WatchConfig = field(default_factory=WatchConfig)


@dataclass(frozen=True)
class DataConfig:
    """A folder with train / validation / test JSONL files, or one file or data set that is split by itself."""

    _target_: str = "src.data.module.PromptDataModule"
    path: str | None = path_field()  # a folder, or a .jsonl or .txt file
    dataset: str | None = (
        path_field()
    )  # instead: a name for the package `datasets` (the hub's, or a folder it can read)
    dataset_config: str | None = None
    split: str = "train"  # of the data set
    columns: dict[str, str] = field(default_factory=dict)  # field of a prompt record: column of the data set
    held_out: float = number_field(
        0.05, ge=1e-6, lt=0.5, why="a share"
    )  # of one file or data set: the share that goes to validation, and as much to test
    on_error: str = choice_field("raise", "raise", "skip")  # skip: bad lines are left out, with a count


@dataclass(frozen=True)
class LevelSamplingConfig:
    """How one level's tokens are drawn. Truncated rollouts are off-policy: see docs/ALGORITHMS.md."""

    temperature: float = number_field(1.0, **TEMPERATURE)
    top_k: int | None = number_field(None, **TOP_K)  # only the k most probable tokens; null: all
    top_p: float | None = number_field(None, **TOP_P)  # only the most probable ones that make up this share; null: all


@dataclass(frozen=True)
class RolloutConfig:
    """Groups and sampling. `prompts_per_step` counts all ranks; `max_plan_tokens` the end token too."""

    group_size: int = number_field(8, ge=2, le=65536, why="a group is compared within itself")
    prompts_per_step: int = number_field(8, **BATCH)
    guidance_scale: float = number_field(5.0, **GUIDANCE)
    max_plan_tokens: int = number_field(256, **BATCH)
    plan: LevelSamplingConfig = field(default_factory=LevelSamplingConfig)
    image: LevelSamplingConfig = field(default_factory=LevelSamplingConfig)
    max_rows: int | None = number_field(
        None, **BATCH
    )  # rollouts decoded at once; null: what fits the GPU's free memory, on a CPU all
    graph: Any = ruled_field("auto", AUTO_OR_SWITCH)  # replay the token step as a CUDA graph; auto: on a GPU


@dataclass(frozen=True)
class LevelWeights:
    """A factor on each level's advantages."""

    plan: float = number_field(1.0, **WEIGHT)
    image: float = number_field(1.0, **WEIGHT)


_ONE_LEVEL = "to train one level only set algorithm.level_weights, the KL then stays"


@dataclass(frozen=True)
class LevelShares:
    """Each level's weight in the loss; both or neither."""

    plan: float | None = number_field(None, ge=1e-6, le=1e6, why=_ONE_LEVEL)
    image: float | None = number_field(None, ge=1e-6, le=1e6, why=_ONE_LEVEL)


@dataclass(frozen=True)
class LevelBonus:
    """The weight of the entropy in the objective, for each level."""

    plan: float = number_field(0.0, **WEIGHT)
    image: float = number_field(0.0, **WEIGHT)


@dataclass(frozen=True)
class LevelTargets:
    """An entropy in nats a token for each level; null: none."""

    plan: float | None = number_field(None, ge=0, le=100)
    image: float | None = number_field(None, ge=0, le=100)


@dataclass(frozen=True)
class AlgorithmConfig:
    """The objective and its constants; docs/ALGORITHMS.md has the formulas and their sources."""

    name: str = "grpo"
    beta: float = number_field(0.01, **WEIGHT)  # 0: the reference is not run
    kl: str = choice_field("k3", "k1", "k2", "k3", "exact")
    # In the reward it is a sum over a rollout's tokens: choose beta far smaller.
    kl_in: str = choice_field("loss", "loss", "reward")
    reference_refresh: int | None = number_field(
        None, **COUNT
    )  # optimiser steps between refreshes; null: the reference never moves
    # Which log-probs the image level trains.
    logp: str = choice_field("conditional", "guided", "conditional")
    clip_low: float = number_field(0.2, ge=0, le=1)
    clip_high: float = number_field(0.2, **WEIGHT)
    updates_per_rollout: int = number_field(1, ge=1, le=10**6)
    level_weights: LevelWeights = field(default_factory=LevelWeights)  # of the policy term; 0: the KL stays
    level_shares: LevelShares = field(default_factory=LevelShares)  # of the whole loss; null: every token alike
    entropy_bonus: LevelBonus = field(default_factory=LevelBonus)
    entropy_target: LevelTargets = field(default_factory=LevelTargets)  # null: the bonus is fixed
    entropy_step: float = number_field(0.005, ge=1e-9, le=100)  # of the steered bonus, an optimiser step
    entropy_maximum: float = number_field(0.1, ge=1e-9, le=1e6)
    correction_cap: float | None = number_field(
        None, gt=1, le=1e6, why="null for no correction"
    )  # of the importance weights training / sampler; null: no correction
    unfinished_plan_penalty: float = number_field(0.0, **WEIGHT)  # taken off the reward of a plan that never ends
    overlong_penalty: float = number_field(
        0.0, **WEIGHT
    )  # taken off at the cap, growing over the last `overlong_margin` tokens
    overlong_margin: int | None = number_field(None, **COUNT)
    # Whose advantages feel a plan's penalties.
    penalties_on: str = choice_field("both", "both", "plan")
    mask_unfinished: bool = False  # plans that never end are not learned from
    dynamic_sampling: bool = False  # groups without signal are replaced by other prompts', else dropped
    max_refills: int = number_field(3, ge=0, le=1000)  # rounds of replacing; 0 only drops
    signal_tolerance: float = number_field(0.0, **WEIGHT)  # rewards of a group that differ by no more say nothing

    def check(self) -> None:
        """Raise ValueError, naming keys, values and the fix, for settings that contradict each other or do nothing."""
        self._check_kl()
        self._check_level_weights()
        self._check_plan_length()
        self._check_entropy()
        shares = vars(self.level_shares)
        if None in shares.values() and any(share is not None for share in shares.values()):
            given = " ".join(f"algorithm.level_shares.{name}={share}" for name, share in shares.items())
            raise ValueError(f"{given}: shares are of one whole; set both, or neither (null)")
        if self.reference_refresh is not None and self.beta == 0:
            raise ValueError(
                f"algorithm.reference_refresh={self.reference_refresh} with algorithm.beta=0: there is no KL, so"
                " no reference to refresh; set beta above 0 or reference_refresh=null"
            )
        if self.signal_tolerance and not self.dynamic_sampling:
            raise ValueError(
                f"algorithm.signal_tolerance={self.signal_tolerance} does nothing without dynamic sampling; set"
                " algorithm.dynamic_sampling=true or signal_tolerance=0"
            )

    def _check_kl(self) -> None:
        if self.kl_in == "reward" and not self.beta:
            raise ValueError(
                f"algorithm.kl_in=reward with algorithm.beta={self.beta}: no KL is taken off any reward; set"
                " algorithm.beta above 0, or algorithm.kl_in=loss for a run without KL"
            )
        if self.beta and self.kl == "k1" and self.kl_in == "loss":
            raise ValueError(
                f"algorithm.kl=k1 with algorithm.kl_in=loss and algorithm.beta={self.beta}: as a loss, k1 has a"
                " gradient of zero on average and only adds noise; choose algorithm.kl from k2, k3, exact, or"
                " algorithm.kl_in=reward"
            )

    def _check_level_weights(self) -> None:
        weights = vars(self.level_weights)
        if max(weights.values()) == 0:
            raise ValueError(f"algorithm.level_weights={dict(weights)}: expected one above 0")
        idle = [name for name, weight in weights.items() if weight == 0]
        if idle and self.reward_beta > 0:
            raise ValueError(
                f"algorithm.level_weights.{idle[0]}={weights[idle[0]]} with algorithm.kl_in=reward and"
                f" algorithm.beta={self.beta}: a KL in the reward works through advantages, so this level would have"
                " none and drift from the reference; set algorithm.kl_in=loss (and a beta for it: a mean over tokens,"
                " no sum), a weight above 0, or algorithm.beta=0 algorithm.kl_in=loss for no KL at all"
            )

    def _check_plan_length(self) -> None:
        unfinished, penalty, margin = self.unfinished_plan_penalty, self.overlong_penalty, self.overlong_margin
        if self.mask_unfinished and unfinished:
            raise ValueError(
                f"algorithm.mask_unfinished=true with algorithm.unfinished_plan_penalty={unfinished}: plans that never"
                " end are either left out or made to cost; set one of the two to false / 0"
            )
        if bool(penalty) != (margin is not None):
            raise ValueError(
                f"algorithm.overlong_penalty={penalty} algorithm.overlong_margin={margin}: the penalty grows over the"
                " last `margin` tokens before the cap; set both, or neither (0 and null)"
            )
        if self.penalties_on == "plan" and not (unfinished or penalty):
            raise ValueError(
                "algorithm.penalties_on=plan, but there is no penalty: set algorithm.unfinished_plan_penalty or"
                " algorithm.overlong_penalty, or penalties_on=both"
            )

    def _check_entropy(self) -> None:
        targets, bonuses = vars(self.entropy_target), vars(self.entropy_bonus)
        defaults = {item.name: item.default for item in fields(self)}
        # What only steers a bonus towards a target.
        changed = [name for name in ("entropy_step", "entropy_maximum") if getattr(self, name) != defaults[name]]
        if changed and all(target is None for target in targets.values()):
            given = " ".join(f"algorithm.{name}={getattr(self, name)}" for name in changed)
            raise ValueError(
                f"{given}: does nothing without a target, the bonus is fixed; set algorithm.entropy_target.plan or"
                " .image, or leave " + " and ".join(f"algorithm.{name}={defaults[name]}" for name in changed)
            )
        for level, target in targets.items():
            if target is not None and bonuses[level] > self.entropy_maximum:
                raise ValueError(
                    f"algorithm.entropy_bonus.{level}={bonuses[level]}: above algorithm.entropy_maximum="
                    f"{self.entropy_maximum}, the bound of a steered bonus; lower it, or set"
                    f" algorithm.entropy_target.{level}=null for a fixed one"
                )

    @property
    def guided(self) -> bool:
        """Whether the image level trains the log-probs of the guided distribution."""
        return self.logp == "guided"

    @property
    def loss_beta(self) -> float:
        """The weight of the KL in the loss."""
        return self.beta if self.kl_in == "loss" else 0.0

    @property
    def reward_beta(self) -> float:
        """The weight of the KL in the reward."""
        return self.beta if self.kl_in == "reward" else 0.0

    @property
    def loss_kl(self) -> str:
        """The KL that the update measures. The exact one in the reward leaves log-probs alone to the update."""
        return "k3" if self.kl_in == "reward" and self.kl == "exact" else self.kl

    @property
    def shares(self) -> dict[str, float] | None:
        """`level_shares` by level, None where every token counts alike."""
        shares = vars(self.level_shares)
        return None if None in shares.values() else dict(shares)


@dataclass(frozen=True)
class OptimConfig:
    """AdamW (arXiv 1711.05101), its schedule, and how a step is cut to fit into memory (docs/MEMORY.md)."""

    lr: float = number_field(1e-6, ge=1e-12, le=10)
    betas: list[float] = number_field([0.9, 0.95], PAIR, ge=0, lt=1)
    weight_decay: float = number_field(0.0, ge=0, le=100)
    warmup_steps: int = number_field(0, **FROM_ZERO)
    schedule: str = choice_field("constant", "constant", "linear", "cosine")
    final_lr_fraction: float = number_field(0.1, ge=0, le=1)
    grad_clip: float = number_field(1.0, ge=1e-6, le=1e6)
    max_grad_norm: float | None = number_field(
        None, ge=1e-6, le=1e9
    )  # a larger norm (before clipping) skips the step, as one that is not finite does
    max_skipped_steps: int = number_field(5, **FROM_ZERO)  # in a row; one more ends the run
    microbatch: int | None = number_field(
        None, **COUNT
    )  # rollouts a backward; null: what fits a GPU by the estimate, on a CPU all
    split_levels: bool | None = None  # a backward is one level of them; null: where activations are checkpointed
    activation_checkpointing: Any = ruled_field("auto", AUTO_OR_SWITCH)  # auto: where a GPU cannot hold a step without


@dataclass(frozen=True)
class TrainerConfig:
    """Passed on to Lightning's Trainer; auto picks what the machine has."""

    max_steps: int = number_field(1600, **COUNT)
    accelerator: str = "auto"
    devices: Any = ruled_field("auto", DEVICES)
    num_nodes: int = number_field(1, ge=1, le=65536)
    strategy: str = "auto"
    # 32-true: the weights' own dtype.
    precision: str = choice_field("auto", "auto", "32-true", "bf16-mixed")
    progress_bar: bool = True


@dataclass(frozen=True)
class LoggerConfig:
    """MLflow, besides the run folder's metrics.csv, which is always written; Lightning's loggers bring own keys."""

    _target_: str = "src.loggers.mlflow_logger.MLflowLogger"
    tracking_uri: str | None = text_field()  # null: MLFLOW_TRACKING_URI, else sqlite:///<run.root>/mlflow.db
    experiment: str = "bicot_grpo"
    parent: str | None = None  # id of the MLflow run this one stands under
    system_metrics_every: float | None = number_field(
        10.0, ge=0.01, le=1e6
    )  # seconds between samples of CPU, memory, disk, GPU; null: none


@dataclass(frozen=True)
class EvaluationConfig:
    """Validation while training, and the report on the test prompts before and after it."""

    every: int = number_field(20, **COUNT)  # optimiser steps between validations
    batch_size: int = number_field(128, **BATCH)
    validation_prompts: int | None = number_field(None, **COUNT)  # null: all
    test_prompts: int | None = number_field(None, **COUNT)
    samples_per_prompt: int = number_field(1, **BATCH)
    seed: int = number_field(1234, **SEED)
    picture_prompts: int = number_field(12, **COUNT)
    monitor: str = "reward"  # the validation figure the best checkpoint is chosen by


@dataclass(frozen=True)
class CheckpointConfig:
    """How often the resumable state is written; `rollouts_every` samples plans and scores into rollouts.jsonl."""

    every: int = number_field(20, **COUNT)
    rollouts_every: int = number_field(10, **COUNT)


@dataclass(frozen=True)
class ResumeConfig:
    """What to go on from. On the command line ``resume=X`` is short for ``resume.path=X``."""

    path: str | None = path_field()  # auto, or the path of a run folder or checkpoint
    allow_changes: bool = False  # go on with other settings than the run was made with


@dataclass(frozen=True)
class WatchdogConfig:
    """When a run that does not go on is ended; docs/RELIABILITY.md."""

    seconds: float | None = number_field(
        1800.0, **SECONDS
    )  # in one phase (a rollout, an expert's scores, a microbatch); null: never
    rank_seconds: float | None = number_field(
        60.0, ge=5, le=1e6, why="a busy machine needs 5"
    )  # without a sign of life from another rank; null: not watched


@dataclass(frozen=True)
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
    kernels: str = ruled_field("auto", BACKEND)
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


def structured(schema: type) -> DictConfig:
    """The node of a schema, to compose a config on. OmegaConf makes a frozen dataclass's read-only; this one is not."""
    node: DictConfig = OmegaConf.structured(schema)
    _writable(node)
    return node


def _writable(node: DictConfig) -> None:
    OmegaConf.set_readonly(node, None)
    for key in node:
        if isinstance(inner := node._get_node(key), DictConfig) and not inner._is_none() and not inner._is_missing():
            _writable(inner)


def typed(config: DictConfig) -> Config:
    """The composed config as frozen objects of the schema; a part with keys of its own is a dict."""
    found = OmegaConf.to_object(config)
    assert isinstance(found, Config)
    return found
