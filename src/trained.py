"""A trained run: found by its path or name, its model and sampling read from its folder, loaded as a policy."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from src.config.errors import UserError

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from src.policies.base import Policy
    from src.rollout.levels import RolloutSettings


def find_run(run: str) -> Path:
    """The folder of a run that is given by its path, or by its name below runs/."""
    path, named = Path(run).expanduser(), Path("runs") / run
    return named if not holds_run(path) and holds_run(named) else path


def nearest_run(run: Path) -> str:
    """`` Did you mean x?``: run folders beside `run`, or below runs/, of nearly its name; nothing where none is."""
    from difflib import get_close_matches

    roots = dict.fromkeys((run.parent, Path("runs")))
    found = {path.name: path for root in roots if root.is_dir() for path in root.iterdir() if holds_run(path)}
    close = get_close_matches(run.name, found, n=3)
    return f" Did you mean {' or '.join(str(found[name]) for name in close)}?" if close else ""


def holds_run(path: Path) -> bool:
    """Whether `path` is a folder that src.train wrote a config into."""
    return (path / "config.yaml").is_file()


def run_config(run: Path) -> dict[str, Any]:
    """The config of a run folder, as plain Python; it names a model.

    Raises:
        UserError: if there is none, or it is none of ours (`src.runs.config`).
    """
    from src.runs.config import read_run_config

    path = run / "config.yaml"
    if not holds_run(run):
        raise UserError(
            f"run={run}: no config.yaml there; give the folder of a run made by src.train.{nearest_run(run)}"
        )
    config = read_run_config(path)
    if "path" not in config.get("model", {}):
        raise UserError(f"{path}: has no model.path; give the folder of a run made by src.train")
    return config


@dataclass(frozen=True, slots=True)
class Source:
    """What to export: a base and either an adapter on it or the weights that replace some of its own."""

    base: Path
    adapter: Path | None
    weights: Path | None = None


def locate_source(run: str | None, adapter: str | None, base: str | None) -> Source:
    """Base, adapter or weights, checked to be there.

    Raises:
        UserError: naming what is missing and what to give instead.
    """
    if (run is None) == (adapter is None):
        raise UserError("run, adapter: give one of the two, as in run=runs/bicot_lora or adapter=runs/x/adapter")
    if run is not None:
        return source_of_run(find_run(run), base)
    from src.policies.export import base_of_adapter

    folder = Path(str(adapter)).expanduser()
    if not folder.is_dir():
        raise UserError(f"adapter={adapter}: no such folder")
    try:
        named = base or base_of_adapter(folder)
    except ValueError as error:
        raise UserError(str(error)) from error
    if named is None:
        raise UserError(f"adapter={adapter}: names no base checkpoint; give base=PATH")
    return Source(_base(named, f"adapter={adapter}"), folder)


def source_of_run(run: Path, base: str | None = None) -> Source:
    """What a run trained: its adapter (the best by validation), or its best weights.

    Raises:
        UserError: if `run` is no run folder, or trained nothing yet.
    """
    from src.runs.folder import RunFolder
    from src.runs.sound_files import damage

    folder = RunFolder(run)
    model = run_config(run)["model"]
    checkpoint = _base(base or checkpoint_of_model(model), f"run={run}")
    if (folder.adapter / "adapter_config.json").is_file():
        return Source(checkpoint, folder.adapter)
    if model.get("lora") is not None or model.get("adapter") is not None:
        raise UserError(
            f"run={run}: no adapter yet, it is written when training ends; finish the run with"
            f" `python -m src.train resume={run}` and its own settings, as in {folder.config}"
        )
    if not folder.best_weights.is_file():
        raise UserError(f"run={run}: no trained weights there ({folder.best_weights})")
    problem = damage(folder.best_weights)
    if problem is not None:
        raise UserError(f"run={run}: {folder.best_weights} is damaged: {problem}; give another run or adapter")
    return Source(checkpoint, None, folder.best_weights)


def checkpoint_of_model(model: dict[str, Any]) -> str:
    """Where a model config's checkpoint lies: its path, or its repository's local copy, downloaded if need be.

    Raises:
        UserError: if the repository cannot be had.
    """
    if model.get("path") is not None:
        return str(model["path"])
    from src.policies.load import find_checkpoint
    from src.policies.weight_files import CheckpointError

    try:
        return str(find_checkpoint(None, model.get("repository")))
    except CheckpointError as error:
        raise UserError(f"model: {error}") from error


def _base(path: str, named_by: str) -> Path:
    from src.policies.weight_files import could_be_path

    folder = Path(path).expanduser() if could_be_path(path) else None
    if folder is None or not folder.is_dir():
        raise UserError(f"{named_by}: its base checkpoint {path} does not exist; give base=PATH")
    return folder


def choose_model(config: DictConfig) -> dict[str, Any]:
    """What to load and how to sample: ``model`` (its config, built with the code of ``plugins``), ``weights`` (of full
    fine-tuning) and ``sampling``.

    A run brings its model and its sampling; what the command line says about sampling comes before both.

    Raises:
        UserError: for a run or adapter that is not there, or a run whose config names code that is not allowed.
    """
    from src.build import plain
    from src.config.allowed_targets import check_part

    if config.run is not None and config.adapter is not None:
        raise UserError("run, adapter: give one of the two; a run brings its own adapter")
    model, sampling, weights = plain(config.model), dict(plain(config.sampling)), None
    if config.run is not None:
        run = find_run(config.run)
        source, trained = source_of_run(run, config.base), run_config(run)
        model, weights = {**trained["model"], "path": str(source.base)}, source.weights
        if source.adapter is not None:
            model["adapter"] = str(source.adapter)
        sampling |= sampling_of_run(trained, run / "config.yaml")
    elif config.adapter is not None:
        source = locate_source(None, config.adapter, config.base or checkpoint_of_model(model))
        model |= {"path": str(source.base), "adapter": str(source.adapter)}
    elif config.base is not None:
        model["path"] = config.base
    plugins = list(config.plugins)
    # A run's config is a file, maybe somebody else's.
    check_part(model, "model", plugins, "model")
    sampling |= sampling_asked_for(config)
    check_sampling(sampling)
    return {"model": model, "weights": weights, "sampling": sampling, "plugins": plugins}


def sampling_of_run(config: dict[str, Any], path: Path) -> dict[str, Any]:
    """What a training run sampled with, by its config, which was read from `path`.

    Raises:
        UserError: naming the file, for a setting that is missing, none, or out of its range.
    """
    from src.build import plain
    from src.config.schema import RolloutConfig
    from src.runs.config import typed_section

    given, keys = config.get("rollout", {}), ("guidance_scale", "max_plan_tokens", "plan", "image")
    if missing := [key for key in keys if key not in given]:
        raise UserError(f"{path}: rollout.{missing[0]}: missing; give the folder of a run made by src.train")
    rollout = typed_section(path, "rollout", RolloutConfig, {key: given[key] for key in keys})
    sampling = {"guidance_scale": rollout.guidance_scale, "max_plan_tokens": rollout.max_plan_tokens}
    for level in ("plan", "image"):
        sampling |= {f"{level}_{key}": value for key, value in plain(rollout[level]).items()}
    return sampling


def sampling_asked_for(config: DictConfig) -> dict[str, Any]:
    """What the command line says about sampling; it comes before a run's and a model's own."""
    asked = {key: config[key] for key in ("guidance_scale", "max_plan_tokens") if config[key] is not None}
    for key in ("temperature", "top_k", "top_p"):
        if config[key] is not None:
            asked |= {f"plan_{key}": config[key], f"image_{key}": config[key]}
    return asked


def check_sampling(sampling: dict[str, Any]) -> None:
    """Raise UserError for a number that cannot be sampled with; a run's come from a file, maybe somebody else's."""
    from src.config.checks import check_values
    from src.config.commands import SamplingConfig
    from src.config.setting import settings

    check_values(sampling, settings(SamplingConfig), "sampling.")


def settings_of(sampling: dict[str, Any]) -> RolloutSettings:
    """The rollout's settings."""
    from src.rollout.levels import RolloutSettings
    from src.values import Sampling

    return RolloutSettings(
        plan=Sampling(sampling["plan_temperature"], top_k=sampling["plan_top_k"], top_p=sampling["plan_top_p"]),
        image=Sampling(
            sampling["image_temperature"],
            sampling["guidance_scale"],
            sampling["image_top_k"],
            sampling["image_top_p"],
        ),
        max_plan_tokens=sampling["max_plan_tokens"],
    )


def load_policy(chosen: dict[str, Any]) -> Policy:
    """The policy, on this process's device, its trained weights put in.

    Raises:
        UserError: for a checkpoint, adapter or weights that cannot be used together, or that hold NaN.
    """
    from src import build
    from src.policies.loaded import check_loaded
    from src.runs.config import literal

    # Without an adapter or weights of its own a fresh LoRA stands in: it changes nothing, and no copy is made.
    model = dict(chosen["model"])
    if "lora" in model and model.get("adapter") is None and chosen["weights"] is None:
        model["lora"] = {}
    given = {"run": {"seed": 0}, "model": model, "plugins": chosen["plugins"]}
    policy: Any = build.build_policy(literal(given))
    if chosen["weights"] is not None:
        from src.policies.weight_files import CheckpointError, check_finite
        from src.runs.files import read_weights

        stored = read_weights(chosen["weights"], "give another run")
        weights = {name.removeprefix("policy."): value for name, value in stored.items()}
        try:
            check_finite(stored, chosen["weights"])
            foreign = policy.load_state_dict(weights, strict=False).unexpected_keys
            if foreign:
                raise RuntimeError(f"{len(foreign)} weights do not exist in the model, such as {foreign[0]}")
        except CheckpointError as error:
            raise UserError(str(error)) from error
        except RuntimeError as error:
            raise UserError(f"{chosen['weights']}: does not fit model.path={model['path']}: {error}") from error
    policy = policy.to(build.device()).eval()
    check_loaded(policy, model, chosen["weights"])
    return policy
