"""The typed schema of every run, registered with Hydra's ConfigStore; `src.config_checks` has what types cannot say.

Each group file under configs/ starts with ``defaults: [<schema>, _self_]``: with the schema underneath, a
mistyped key or a value of the wrong type fails while the config is composed; without it Hydra would add
the key silently. A part that is not ours (another policy, a data set) brings its own keys behind its
``_target_`` and needs no schema.
"""

from __future__ import annotations

from dataclasses import dataclass, field
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
    """A Janus checkpoint, in transformers' layout or in the one it was released in."""

    _target_: str = "src.policies.load.load_janus"
    path: str | None = None
    repository: str | None = None  # where there is no path: the Hugging Face cache, else the hub
    dtype: str = "auto"  # auto | float32 | bfloat16
    adapter: str | None = None  # a PEFT folder to go on from
    lora: LoraConfig | None = field(default_factory=LoraConfig)  # null: train the language model itself
    merge_rollout: bool | None = None  # decode with the adapter merged; null: in float32 only


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
    precision: str = "auto"
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
    resume: ResumeConfig = field(default_factory=ResumeConfig)
    watchdog: WatchdogConfig = field(default_factory=WatchdogConfig)


@dataclass
class SamplingConfig:
    """How pictures are drawn where no run says otherwise; configs/sampling has one file a model."""

    guidance_scale: float = 5.0
    max_plan_tokens: int = 256  # the end token included
    plan_temperature: float = 1.0
    image_temperature: float = 1.0
    plan_top_k: int | None = None
    plan_top_p: float | None = None
    image_top_k: int | None = None
    image_top_p: float | None = None


@dataclass
class PaintingConfig:
    """Which model paints and how it samples, for the entry points that do."""

    run: str | None = None  # a run folder: its model, its adapter, its sampling
    adapter: str | None = None  # a PEFT folder for `model`
    base: str | None = None  # where the base checkpoint is now, if it moved
    model: Any = MISSING
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    temperature: float | None = None  # of both levels, as top_k and top_p
    top_k: int | None = None
    top_p: float | None = None
    guidance_scale: float | None = None
    max_plan_tokens: int | None = None


@dataclass
class GenerateConfig(PaintingConfig):
    """``python -m src.generate``. `prompts` and `prompts_file` are read off the command line as they are."""

    prompts: Any = None  # one prompt, a list, or - for one a line on standard input
    prompts_file: str | None = None  # .txt with one a line, or .jsonl records
    rewards: Any = MISSING
    n: int = 4  # pictures a prompt
    best_of: int = 1  # candidates a picture, of which the best is kept
    best_of_by: str | None = None  # the expert that chooses; null: the total of all
    seed: int = 0
    batch_size: int = 64  # pictures decoded at once
    progress_bar: bool = True  # on a terminal
    out: str | None = None  # null: outputs/generated-<time>
    overwrite: bool = False


@dataclass
class DemoConfig(PaintingConfig):
    """``python -m src.demo``: a page on 127.0.0.1; docs/DEMO.md. temperature, guidance_scale: where it starts."""

    rewards: Any = MISSING
    port: int = 7860
    share: bool = False  # a public address through Gradio's servers
    paint_every: int | None = None  # tokens between two looks at the picture; null: 16 looks a picture


@dataclass
class BenchmarkImagesConfig(PaintingConfig):
    """``python -m src.benchmark_images``: a public benchmark's images, as its own scorer reads them."""

    name: str | None = None  # geneval | t2i_compbench | wise | dpg | tiif
    prompts: str | None = None  # file or folder of the user's copy; docs/BENCHMARKS.md
    n: int | None = None  # images a prompt; null: what the scorer is made for
    model_name: str = "model"  # of TIIF-Bench's paths
    seed: int = 0
    batch_size: int = 64  # pictures decoded at once
    out: str | None = None


@dataclass
class ScoreGenevalConfig:
    """``python -m src.score_geneval``: images in GenEval's layout, by its rules."""

    images: str | None = None  # the folder of 00000, 00001, ...
    out: str | None = None  # null: results.jsonl in `images`
    detector: str | None = None  # a directory; null: detector_repository
    detector_repository: str = "facebook/mask2former-swin-small-coco-instance"
    clip: str | None = None  # a directory; null: clip_repository
    clip_repository: str = "openai/clip-vit-large-patch14"
    threshold: float = 0.3  # a detection's score must exceed it
    counting_threshold: float = 0.9  # under the tag "counting"
    max_objects: int = 16  # of a class
    max_overlap: float = 1.0  # of two boxes of a class; 1: no suppression
    position_threshold: float = 0.1  # of both boxes' sizes
    samples: int | None = None  # images a prompt should have; null: benchmark.json's, else the most any has
    allow_missing: bool = False  # score what is there
    batch_size: int = 4  # images the detector sees at once
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
    layout: str = "transformers"  # of a whole checkpoint: transformers | original
    overwrite: bool = False
    base_repository: str | None = None  # the base's name on the hub; null: what the run or the cache says
    license: str | None = None  # of the model card; null: the base's, where it is known
    push_to_hub: bool = False
    repo: str | None = None  # on the hub, as ORGANISATION/NAME
    private: bool = True  # a new repository on the hub
    register: bool = False  # a version of `registered_name` in MLflow's model registry
    registered_name: str | None = None  # null: the run's name
    tracking_uri: str | None = None  # null: the run's, else MLFLOW_TRACKING_URI, else sqlite:///<runs>/mlflow.db


@dataclass
class EvaluateConfig(PaintingConfig):
    """``python -m src.evaluate``: base and trained models on the same prompts and noise; docs/EVALUATION.md."""

    adapters: Any = None  # more models: run folders or PEFT folders: one, a list, or {name: folder}
    data: Any = None  # null: the run's
    rewards: Any = None  # null: the run's
    prompts: Any = None  # instead of data; read off the command line as they are, as is prompts_file
    prompts_file: str | None = None
    kinds: list[str] | None = None  # only prompts of these task types
    max_prompts: int | None = None  # the first so many of those; null: all
    n: int = 4  # samples a prompt
    seed: int | None = None  # null: the run's evaluation.seed, else 1234
    batch_size: int = 128  # pictures decoded at once
    embedding: str = "auto"  # diversity's: pixels, the name of an expert with an image tower, auto: that or pixels
    resamples: int = 2000  # of the bootstrap
    picture_prompts: int = 200  # prompts with pictures in report.html
    out: str | None = None  # null: outputs/evaluated-<time>
    overwrite: bool = False


@dataclass
class CompareConfig:
    """``python -m src.compare``: runs of an MLflow experiment, of run folders, or both."""

    # MLflow's experiment; `experiment=` on the command line, which Hydra itself takes for the group configs/experiment.
    experiment_name: str | None = None
    tracking_uri: str | None = None  # null: MLFLOW_TRACKING_URI, else sqlite:///<root>/mlflow.db
    root: str = "runs"
    runs: Any = None  # a run folder, a folder of them, a run's name in the experiment, or a list of such
    metric: str | None = None  # null: validation/reward, else the first of validation/*, reward
    mode: str = "max"  # max | min: which value of the metric is the best
    baseline: str | None = None  # a run's name: paired differences on the test prompts
    out: str = "comparison"
    overwrite: bool = False


@dataclass
class BenchmarkConfig:
    """``python -m src.benchmark``."""

    sizes: list[str] | None = None  # tiny | 1b | 7b; null: 1b and 7b on a GPU, tiny on a CPU
    parts: list[str] = field(default_factory=lambda: ["image_step", "scaling", "ablation", "peers", "train_step"])
    images: list[int] = field(default_factory=lambda: [16, 64])
    scaling: list[int] = field(default_factory=lambda: [8, 16, 32, 64, 128])
    group_size: int = 8
    memory_gib: float = 40.0  # train_step is cut as a training run would cut it for a card of this size
    rounds: int = 5
    compile: bool = True  # time the compiled peer, too
    kernels: str = "auto"
    out: str | None = None  # null: experiments/rollout_speed


@dataclass
class ServeRewardsConfig:
    """``python -m src.serve_rewards``: the experts of `rewards` behind HTTP; docs/SERVING.md."""

    rewards: Any = MISSING
    host: str = "127.0.0.1"  # 127.0.0.1 | 0.0.0.0 | ::; all but the first need a token
    port: int = 8000
    token_file: str | None = None  # null: the environment's BICOT_REWARDS_TOKEN, if set
    accelerator: str = "auto"  # auto | cpu | cuda | mps
    devices: Any = "auto"  # how many of them
    workers: int = 1  # processes a device, each with the experts' weights
    max_batch: int = 1  # requests that a worker scores together; 1: what is scored together never depends on others
    batch_timeout: float = 0.01  # seconds to wait for further ones
    timeout: float = 120.0  # seconds a request may wait for a worker
    max_images: int = 1024  # in one request
    max_pixels: int = 134_217_728  # of all pictures of a request together
    max_bytes: int = 268_435_456  # of a request
    log_level: str = "warning"


@dataclass
class UploadConfig:
    """``python -m src.upload_metrics``."""

    run: str | None = None  # a run folder
    tracking_uri: str | None = None  # null: the one the run was logged to, else as logger=mlflow chooses
    experiment: str | None = None  # null: the run's


# The schema under each root config of configs/, by file name.
ROOT_SCHEMAS: dict[str, type] = {
    "config": Config,
    "generate": GenerateConfig,
    "demo": DemoConfig,
    "benchmark_images": BenchmarkImagesConfig,
    "score_geneval": ScoreGenevalConfig,
    "export": ExportConfig,
    "evaluate": EvaluateConfig,
    "benchmark": BenchmarkConfig,
    "serve_rewards": ServeRewardsConfig,
    "compare": CompareConfig,
    "upload_metrics": UploadConfig,
}

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
