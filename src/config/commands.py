"""The typed schema of every entry point but training, and the registration of all with Hydra's ConfigStore."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, OmegaConf

from src.config.schema import GROUP_SCHEMAS, ROOT, Config, RemoteConfig, structured
from src.config.setting import (
    BACKEND,
    BATCH,
    COUNT,
    DEVICES,
    DTYPE,
    FROM_ZERO,
    GUIDANCE,
    PORT,
    SECONDS,
    SEED,
    TEMPERATURE,
    TOP_K,
    TOP_P,
    Rule,
    Setting,
    choice_field,
    not_empty,
    number_field,
    path_field,
    paths_field,
    ruled_field,
    settings,
    text_field,
)

KINDS = Rule(lambda value: len(value) > 0, "at least one kind of prompt, or null for all")
NUMBERS = not_empty("integer >= 1")


@dataclass(frozen=True)
class SamplingConfig:
    """How pictures are drawn where no run says otherwise; configs/sampling has one file a model."""

    guidance_scale: float = number_field(5.0, **GUIDANCE)
    max_plan_tokens: int = number_field(256, **BATCH)  # the end token included
    plan_temperature: float = number_field(1.0, **TEMPERATURE)
    image_temperature: float = number_field(1.0, **TEMPERATURE)
    plan_top_k: int | None = number_field(None, **TOP_K)
    plan_top_p: float | None = number_field(None, **TOP_P)
    image_top_k: int | None = number_field(None, **TOP_K)
    image_top_p: float | None = number_field(None, **TOP_P)


@dataclass(frozen=True)
class PaintingConfig:
    """Which model paints and how it samples, for the entry points that do."""

    run: str | None = path_field()  # a run folder: its model, its adapter, its sampling
    adapter: str | None = path_field()  # a PEFT folder for `model`
    base: str | None = path_field()  # where the base checkpoint is now, if it moved
    model: Any = MISSING
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    temperature: float | None = number_field(None, **TEMPERATURE)  # of both levels, as top_k and top_p
    top_k: int | None = number_field(None, **TOP_K)
    top_p: float | None = number_field(None, **TOP_P)
    guidance_scale: float | None = number_field(None, **GUIDANCE)
    max_plan_tokens: int | None = number_field(None, **BATCH)
    plugins: list[str] = field(default_factory=list)  # packages whose code `_target_` may name; a run's do not count


@dataclass(frozen=True)
class GenerateConfig(PaintingConfig):
    """``python -m src.generate``. `prompts` and `prompts_file` are read off the command line as they are."""

    prompts: Any = text_field()  # one prompt, a list, or - for one a line on standard input
    prompts_file: str | None = path_field()  # .txt with one a line, or .jsonl records
    rewards: Any = MISSING
    n: int = number_field(4, **BATCH)  # pictures a prompt
    best_of: int = number_field(1, **BATCH)  # candidates a picture, of which the best is kept
    best_of_by: str | None = None  # the expert that chooses; null: the total of all
    seed: int = number_field(0, **SEED)
    batch_size: int = number_field(64, **BATCH)  # pictures decoded at once
    progress_bar: bool = True  # on a terminal
    out: str | None = path_field()  # null: outputs/generated-<time>
    overwrite: bool = False


@dataclass(frozen=True)
class DemoConfig(PaintingConfig):
    """``python -m src.demo``: a page on 127.0.0.1; docs/DEMO.md. temperature, guidance_scale: where it starts."""

    rewards: Any = MISSING
    port: int = number_field(7860, **PORT)
    share: bool = False  # a public address through Gradio's servers
    paint_every: int | None = number_field(
        None, **BATCH
    )  # tokens between two looks at the picture; null: 16 looks a picture


@dataclass(frozen=True)
class BenchmarkImagesConfig(PaintingConfig):
    """``python -m src.benchmark_images``: a public benchmark's images, as its own scorer reads them."""

    name: str | None = None  # geneval | t2i_compbench | wise | dpg | tiif
    prompts: str | None = path_field()  # file or folder of the user's copy; docs/BENCHMARKS.md
    n: int | None = number_field(None, **BATCH)  # images a prompt; null: what the scorer is made for
    model_name: str = "model"  # of TIIF-Bench's paths
    seed: int = number_field(0, **SEED)
    batch_size: int = number_field(64, **BATCH)  # pictures decoded at once
    out: str | None = path_field()


@dataclass(frozen=True)
class ScoreGenevalConfig:
    """``python -m src.score_geneval``: images in GenEval's layout, by its rules."""

    images: str | None = path_field()  # the folder of 00000, 00001, ...
    out: str | None = path_field()  # null: results.jsonl in `images`
    detector: str | None = path_field()  # a directory; null: detector_repository
    detector_repository: str = "facebook/mask2former-swin-small-coco-instance"
    clip: str | None = path_field()  # a directory; null: clip_repository
    clip_repository: str = "openai/clip-vit-large-patch14"
    threshold: float = number_field(0.3, ge=0, le=1)  # a detection's score must exceed it
    counting_threshold: float = number_field(0.9, ge=0, le=1)  # under the tag "counting"
    max_objects: int = number_field(16, ge=1, le=10**6)  # of a class
    max_overlap: float = number_field(1.0, ge=1e-6, le=1, why="1 is no suppression")  # a share, of two boxes of a class
    position_threshold: float = number_field(0.1, ge=0, le=1e6)  # of both boxes' sizes
    samples: int | None = number_field(
        None, **BATCH
    )  # images a prompt should have; null: benchmark.json's, else the most any has
    allow_missing: bool = False  # score what is there
    batch_size: int = number_field(4, **BATCH)  # images the detector sees at once
    overwrite: bool = False


@dataclass(frozen=True)
class ExportConfig:
    """``python -m src.export``: of `run`, or of `adapter`."""

    run: str | None = path_field()  # a run folder
    adapter: str | None = path_field()  # a PEFT folder
    base: str | None = path_field()  # where the base checkpoint is now, if it moved
    out: str | None = path_field()
    merge: bool = False
    dtype: str = ruled_field("auto", DTYPE)  # of a merged checkpoint; auto: the base's
    layout: str = choice_field("transformers", "transformers", "original")  # of a whole checkpoint
    overwrite: bool = False
    base_repository: str | None = None  # the base's name on the hub; null: what the run or the cache says
    license: str | None = None  # of the model card; null: the base's, where it is known
    push_to_hub: bool = False
    repo: str | None = None  # on the hub, as ORGANISATION/NAME
    private: bool = True  # a new repository on the hub
    register: bool = False  # a version of `registered_name` in MLflow's model registry
    registered_name: str | None = None  # null: the run's name
    tracking_uri: str | None = (
        text_field()
    )  # null: the run's, else MLFLOW_TRACKING_URI, else sqlite:///<runs>/mlflow.db


@dataclass(frozen=True)
class EvaluateConfig(PaintingConfig):
    """``python -m src.evaluate``: base and trained models on the same prompts and noise; docs/EVALUATION.md."""

    adapters: Any = paths_field()  # more models: run folders or PEFT folders: one, a list, or {name: folder}
    data: Any = None  # null: the run's
    rewards: Any = None  # null: the run's
    remote: RemoteConfig = field(default_factory=RemoteConfig)  # where the run's experts are served, if they are
    prompts: Any = text_field()  # instead of data; read off the command line as they are, as is prompts_file
    prompts_file: str | None = path_field()
    kinds: list[str] | None = ruled_field(None, KINDS)  # only prompts of these task types
    max_prompts: int | None = number_field(None, **COUNT)  # the first so many of those; null: all
    n: int = number_field(4, **BATCH)  # samples a prompt
    seed: int | None = number_field(None, **SEED)  # null: the run's evaluation.seed, else 1234
    batch_size: int = number_field(128, **BATCH)  # pictures decoded at once
    embedding: str = "auto"  # diversity's: pixels, the name of an expert with an image tower, auto: that or pixels
    resamples: int = number_field(
        2000, ge=100, le=10**6, why="the ends of an interval are read off so many"
    )  # of the bootstrap
    picture_prompts: int = number_field(200, **FROM_ZERO)  # prompts with pictures in report.html
    out: str | None = path_field()  # null: outputs/evaluated-<time>
    overwrite: bool = False


@dataclass(frozen=True)
class CompareConfig:
    """``python -m src.compare``: runs of an MLflow experiment, of run folders, or both."""

    # MLflow's experiment; `experiment=` on the command line, which Hydra itself takes for the group configs/experiment.
    experiment_name: str | None = None
    tracking_uri: str | None = text_field()  # null: MLFLOW_TRACKING_URI, else sqlite:///<root>/mlflow.db
    root: str = path_field("runs")
    runs: Any = paths_field()  # a run folder, a folder of them, a run's name in the experiment, or a list of such
    metric: str | None = None  # null: validation/reward, else the first of validation/*, reward
    mode: str = choice_field("max", "max", "min")  # which value of the metric is the best
    baseline: str | None = None  # a run's name: paired differences on the test prompts
    out: str = path_field("comparison")
    overwrite: bool = False


@dataclass(frozen=True)
class BenchmarkConfig:
    """``python -m src.benchmark``."""

    sizes: list[str] | None = None  # tiny | 1b | 7b; null: 1b and 7b on a GPU, tiny on a CPU
    parts: list[str] = field(default_factory=lambda: ["image_step", "scaling", "ablation", "peers", "train_step"])
    images: list[int] = number_field([16, 64], NUMBERS, **BATCH)
    scaling: list[int] = number_field([8, 16, 32, 64, 128], NUMBERS, **BATCH)
    group_size: int = number_field(8, ge=1, le=65536)
    memory_gib: float = number_field(
        40.0, ge=1e-3, le=1e6
    )  # train_step is cut as a training run would cut it for a card of this size
    rounds: int = number_field(5, ge=1, le=10**6)
    compile: bool = True  # time the compiled peer, too
    kernels: str = ruled_field("auto", BACKEND)
    out: str | None = path_field()  # null: experiments/rollout_speed
    overwrite: bool = False


@dataclass(frozen=True)
class ServeRewardsConfig:
    """``python -m src.serve_rewards``: the experts of `rewards` behind HTTP; docs/SERVING.md."""

    rewards: Any = MISSING
    # All but the first need a token.
    host: str = choice_field("127.0.0.1", "127.0.0.1", "0.0.0.0", "::")  # noqa: S104 (checked, not bound)
    port: int = number_field(8000, **PORT)
    token_file: str | None = path_field()  # null: the environment's BICOT_REWARDS_TOKEN, if set
    plugins: list[str] = field(default_factory=list)  # packages whose code `_target_` may name
    accelerator: str = choice_field("auto", "auto", "cpu", "cuda", "mps")
    devices: Any = ruled_field("auto", DEVICES)  # how many of them
    workers: int = number_field(1, ge=1, le=1024)  # processes a device, each with the experts' weights
    max_batch: int = number_field(
        1, ge=1, le=65536
    )  # requests that a worker scores together; 1: what is scored together never depends on others
    batch_timeout: float = number_field(0.01, ge=1e-6, le=3600)  # seconds to wait for further ones
    timeout: float = number_field(120.0, **SECONDS)  # seconds a request may wait for a worker
    max_images: int = number_field(1024, **BATCH)  # in one request
    max_pixels: int = number_field(134_217_728, ge=1, le=2**40)  # of all pictures of a request together
    max_bytes: int = number_field(268_435_456, ge=1, le=2**40)  # of a request
    max_picture_pixels: int = number_field(4_194_304, ge=1, le=2**40)  # of one picture
    log_level: str = choice_field("warning", "critical", "error", "warning", "info", "debug")


@dataclass(frozen=True)
class UploadConfig:
    """``python -m src.upload_metrics``."""

    run: str | None = path_field()  # a run folder
    tracking_uri: str | None = text_field()  # null: the one the run was logged to, else as logger=mlflow chooses
    experiment_name: str | None = None  # `experiment=` on the command line; null: the run's


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


def settings_of(root: str) -> dict[str, Setting]:
    """All settings of a root config's schema and of the schemas of its groups, by dotted key."""
    found = {setting.key: setting for setting in settings(ROOT_SCHEMAS[root])}
    for group, schema in GROUP_SCHEMAS.items():
        if group in found:
            found |= {setting.key: setting for setting in settings(schema, f"{group}.")}
    return found


def register() -> None:
    """Tell Hydra the schema and the bounds of the files it reads, and OmegaConf two resolvers; idempotent.

    ``${root:}`` is the checkout, ``${home:PATH}`` the path with ``~`` expanded.
    """
    from src.config.sources import register_sources

    register_sources()
    store = ConfigStore.instance()
    for name, schema in ROOT_SCHEMAS.items():
        store.store(name="schema" if name == "config" else f"{name}_schema", node=structured(schema))
    for group, schema in GROUP_SCHEMAS.items():
        store.store(group=group, name="schema", node=structured(schema))
    store.store(group="sampling", name="schema", node=structured(SamplingConfig))
    OmegaConf.register_new_resolver("root", lambda: str(ROOT), replace=True)
    OmegaConf.register_new_resolver("home", os.path.expanduser, replace=True)
