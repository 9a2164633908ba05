"""From the command line to a validated config: Hydra composes, this file reports what is wrong in one line."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

from src.config import CONFIGS, UserError, register, validate

EXIT_WRONG_INPUT = 2


def compose(overrides: Sequence[str]) -> object:
    """The config for these Hydra overrides, composed and validated.

    Raises:
        UserError: for an override or config file that cannot be composed, or a value out of range.
    """
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    register()
    try:
        with initialize_config_dir(str(CONFIGS), version_base="1.3"):
            config = hydra_compose("config", list(overrides))
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(str(error).strip()) from error
    validate(config)
    return config


def run(task: Callable[[object], int], arguments: Sequence[str] | None = None) -> int:
    """Compose, run `task(config)` and return its exit code; wrong input prints one message and gives 2."""
    overrides = list(sys.argv[1:] if arguments is None else arguments)
    try:
        return task(compose(overrides))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_WRONG_INPUT
