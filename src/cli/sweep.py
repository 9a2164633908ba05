"""Sweeps: ``python -m src.train -m algorithm.beta=0.01,0.02`` by Hydra's multirun."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from src.config.checks import validate
from src.config.commands import register
from src.config.errors import UserError
from src.config.factories import current
from src.config.interpolation_bounds import bounded
from src.config.schema import CONFIGS, LoggerConfig
from src.config.typed_words import as_typed, expand_paths

if TYPE_CHECKING:
    from src.cli.compose import Command


class JobFailed(Exception):
    """A job of the sweep returned an exit code other than 0."""

    def __init__(self, code: int) -> None:
        super().__init__(code)  # the argument alone: other processes hand it on by it
        self.code = code

    def __str__(self) -> str:
        return f"a job of the sweep ended with exit code {self.code}"


class Job:
    """What Hydra runs for each combination; other processes make it again from the entry point's name."""

    def __init__(self, command: Command) -> None:
        self.command = command

    def __call__(self, config: Any) -> int:
        with bounded():
            expand_paths(config, self.command.config)
            validate(config, self.command.config)
        code = self.command.task(config)
        if code:
            raise JobFailed(code)
        return code

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return _job, (self.command.name,)


def _job(name: str) -> Job:
    """The job of ``src.<name>`` in a process of a cluster: with the schema, before Hydra composes the job's config."""
    register()
    return Job(import_module(f"src.{name}").COMMAND)


def sweep(command: Command, overrides: Sequence[str]) -> int:
    """Run every combination, one after the other unless another Hydra launcher is chosen.

    A job that fails ends the sweep with its exit code.
    """
    import hydra
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    from src.cli.compose import spelled_out
    from src.cli.errors import explain

    register()

    overrides = as_typed(spelled_out(overrides), command.config, sweep=True)
    overrides += _parent(command, overrides)
    before = sys.argv
    # Hydra's own runner exits with 1 and a page of text on errors; with this it lets them through.
    sys.argv = [before[0], "--multirun", *overrides]
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        with bounded(whole=False):  # it ends with the last job
            hydra.main(config_path=str(CONFIGS), config_name=command.config, version_base="1.3")(Job(command))()
    except JobFailed as failure:
        return failure.code
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(explain(error, overrides, command.config)) from error
    finally:
        sys.argv = before
    return 0


def _parent(command: Command, overrides: Sequence[str]) -> list[str]:
    """With MLflow: a parent run for the jobs to stand under, as the override that names it."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import OverrideParseException

    from src.cli.compose import compose
    from src.cli.errors import explain

    try:
        parsed = OverridesParser.create().parse_overrides(list(overrides))
    except OverrideParseException as error:
        raise UserError(explain(error, overrides, command.config)) from error
    # Where the runs are logged does not depend on what is swept.
    fixed = [str(word.input_line) for word in parsed if not word.is_sweep_override()]
    config = compose(fixed, command.config)
    _check_hydra(fixed, command.config, list(config.plugins))
    logger = config.logger
    if current(logger.get("_target_")) != LoggerConfig._target_ or logger.parent is not None:
        return []
    from src.loggers.mlflow_logger import start_parent

    tags = {"sweep": " ".join(overrides)}
    run_id = start_parent(logger.tracking_uri, Path(config.run.root), logger.experiment, config.run.name, tags)
    return [] if run_id is None else [f"logger.parent={run_id}"]


def _check_hydra(overrides: Sequence[str], config_name: str, plugins: Sequence[str]) -> None:
    """Refuse a launcher, sweeper, callback or log handler that may not be called; nothing of it is imported."""
    from hydra import compose, initialize_config_dir
    from omegaconf import OmegaConf

    from src.config.allowed_targets import check_hydra

    with bounded(), initialize_config_dir(str(CONFIGS), version_base="1.3"):
        whole = compose(config_name, list(overrides), return_hydra_config=True)
    # Unresolved: some of it is known in a job only. An interpolation is no allowed target.
    hydra: Any = OmegaConf.to_container(whole.hydra, resolve=False)
    check_hydra(hydra, plugins)
