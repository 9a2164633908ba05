"""The loggers of a run: always metrics.csv, and the one chosen by ``logger=``."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from uuid import uuid4

from lightning.pytorch.loggers import Logger
from omegaconf import DictConfig, OmegaConf

from src.config.allowed_targets import check_part, factory
from src.config.errors import UserError
from src.loggers.facts import RunFacts, is_rank_zero, run_parameters
from src.runs.files import damaged, read_text
from src.runs.folder import write_text
from src.runs.metrics_file import MetricsFile

# The packages that Lightning's loggers need; an extra installs them.
EXTRAS = {"TensorBoardLogger": "tensorboard", "WandbLogger": "wandb"}


def build_loggers(node: DictConfig, run: RunFacts) -> list[Logger]:
    """MetricsFile, and what ``logger._target_`` names.

    If the constructor takes them and the config does not set them, it gets ``run`` (a `RunFacts`),
    ``save_dir`` (the run's folder) and ``id`` (a name for the run that a resumed run finds again).

    Raises:
        UserError: if its package is missing or the settings do not fit it.
    """
    loggers: list[Logger] = [MetricsFile(run.folder.metrics)]
    if node.get("_target_") is not None:
        loggers.append(_chosen(node, run))
    return loggers


def log_parameters(loggers: list[Logger], run: RunFacts) -> None:
    """Send the run's settings, flat and short, to every logger."""
    parameters = run_parameters(run.config)
    for logger in loggers:
        logger.log_hyperparams(parameters)


def _chosen(node: DictConfig, run: RunFacts) -> Logger:
    plugins, target = run.config.get("plugins") or (), node["_target_"]
    resolved: Any = OmegaConf.to_container(node, resolve=True)
    check_part(resolved, "logger", plugins, "logger")
    package = EXTRAS.get(target.rpartition(".")[2])
    if package is not None and find_spec(package) is None:
        raise UserError(
            f'logger: {package} is not installed; pip install -e ".[loggers]", or choose logger=mlflow or logger=csv'
        )
    try:
        make, settings = factory(resolved, "logger", plugins, "logger")
        return make(**settings, **_offers(settings, run, inspect.signature(make).parameters))
    except (ImportError, TypeError, ValueError) as error:
        raise UserError(f"logger: {target}: {error}") from error


def _offers(settings: Mapping[str, Any], run: RunFacts, taken: Mapping[str, Any]) -> dict[str, Any]:
    offered: dict[str, Any] = {}
    if "run" in taken:
        offered["run"] = run
    if "save_dir" in taken and settings.get("save_dir") is None:
        offered["save_dir"] = str(run.folder.path)
    if "id" in taken and settings.get("id") is None:
        offered["id"] = run_id(run.folder.path)
    return offered


def run_id(folder: Path) -> str | None:
    """A random name kept in the run's folder, so that a resumed run continues in the same place; rank 0 only."""
    if not is_rank_zero():
        return None
    path = folder / "logger_id"
    if not path.is_file():
        write_text(path, uuid4().hex[:12] + "\n")
    name = read_text(path, fix := "delete it, and the run gets a new one").strip()
    if re.fullmatch(r"[\w-]{1,100}", name) is None:
        raise damaged(path, "not a name of letters and digits", fix)
    return name
