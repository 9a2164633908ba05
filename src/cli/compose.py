"""What a command is, and its config composed by Hydra and validated."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Command:
    """An entry point as the command line sees it.

    `about` and `examples` are what ``--help`` shows; `config` is the root config's name; `groups` those whose
    options are listed. `task` takes the validated config and returns the exit code. `own_words` are keys a user writes
    under another name than the config has them by.
    """

    name: str
    about: str
    examples: Sequence[str]
    task: Callable[[Any], int]
    config: str = "config"
    groups: Sequence[str] = ("experiment", "model", "rewards", "data", "algorithm", "trainer", "logger")
    keys: Sequence[str] = ()
    sweeps: bool = False
    own_words: Mapping[str, str] = field(default_factory=dict)


def _composed(overrides: list[str], config_name: str) -> Any:
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    from src.cli.errors import explain, explain_interpolation
    from src.config.checks import validate
    from src.config.commands import register
    from src.config.errors import UserError
    from src.config.schema import CONFIGS
    from src.config.typed_words import as_typed, expand_paths
    from src.config.yaml_bounds import explain_yaml

    register()
    words = as_typed(overrides, config_name)
    try:
        with initialize_config_dir(str(CONFIGS), version_base="1.3"):
            config = hydra_compose(config_name, words)
    except (UserError, RecursionError):  # of a config file
        raise
    except YAMLError as error:
        raise UserError(explain_yaml(error)) from error
    except Exception as error:
        # Hydra's and OmegaConf's own, and what odd words make them stumble over: nothing else runs in there.
        raise UserError(explain(error, overrides, config_name)) from error
    try:
        expand_paths(config, config_name)
        validate(config, config_name)
    except OmegaConfBaseException as error:  # an interpolation that leads nowhere
        raise UserError(explain_interpolation(error, config)) from error
    return config


# Keys that became nodes, and what their short form means.
SHORT_FOR = {"resume": "resume.path"}


# To Hydra the word is the group configs/experiment; commands that mean MLflow's experiment have it by another name.
MLFLOW_EXPERIMENT = {"experiment": "experiment_name"}


def spelled_out(overrides: Sequence[str], words: Mapping[str, str] = SHORT_FOR) -> list[str]:
    """The overrides with each key of `words` as the one it stands for (``resume=auto`` is ``resume.path=auto``)."""
    parts = [word.partition("=") for word in overrides]
    return ["".join((words.get(key, key) if sign else key, sign, value)) for key, sign, value in parts]


def compose(overrides: Sequence[str], config_name: str = "config") -> Any:
    """The config for these Hydra overrides, composed and validated.

    Raises:
        UserError: for an override or config file that cannot be composed, or a value out of range.
    """
    from src.config.interpolation_bounds import bounded

    with bounded():
        return _composed(spelled_out(overrides), config_name)
