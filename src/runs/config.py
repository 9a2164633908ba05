r"""Writes and reads the config.yaml of a run folder, as plain data.

A run folder may come from someone else, so its config is never resolved: no environment variable, no resolver, no
other key. `${` in a user's text is written as `\${`, OmegaConf's escape.
"""

from __future__ import annotations

from collections.abc import Mapping
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from src.config.errors import UserError
from src.config.interpolation_bounds import DOLLAR, escaped
from src.config.masking import masked
from src.config.yaml_bounds import check_yaml, explain_yaml, read_bounded
from src.runs.folder import leads_out, write_text

if TYPE_CHECKING:
    from omegaconf import DictConfig

# Sections of `src.config.schema.Config` that are mappings.
SECTIONS = (
    *("run", "model", "rewards", "data", "algorithm", "rollout", "optim", "trainer", "logger"),
    *("evaluation", "checkpoint", "resume", "watchdog"),
)


def literal(value: Any) -> DictConfig:
    """A config node of plain data in which ``${`` is text: resolved, it is `value` again."""
    from omegaconf import OmegaConf

    node: DictConfig = OmegaConf.create(escaped(value))
    return node


def config_text(config: Mapping[str, Any]) -> str:
    """What config.yaml holds of a resolved config: YAML without secrets."""
    from omegaconf import OmegaConf

    return OmegaConf.to_yaml(literal(masked(config)))


def write_run_config(path: Path, config: Mapping[str, Any]) -> None:
    """Write the resolved config of a run, whole or not at all, secrets masked; raises CannotSave."""
    write_text(path, config_text(config))


def read_run_config(path: Path) -> dict[str, Any]:
    """The config.yaml of a run folder as plain Python; every section in it is a mapping.

    Raises:
        UserError: naming file, key and fix, for a file that is not a run's config, leads out of its folder, is too
            large, or would need resolving.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    if leads_out(path.parent, path) is not None:
        raise UserError(f"{path}: is a link out of the run's folder; replace it with the file itself")
    text = read_bounded(path)

    def refuse(key: str, value: str, line: int) -> None:
        if value == "???" or any(len(found[1]) % 2 == 0 for found in DOLLAR.finditer(value)):
            shown = value if len(value) <= 60 else value[:60] + "..."
            raise UserError(
                f"{path}:{line}: {key}={shown}: a run's config is data, nothing in it is looked up; write the value"
                " itself in its place, give it on the command line, or write \\${ for these very characters"
            )

    check_yaml(text, str(path), plain=True, each=refuse)
    try:
        config = OmegaConf.to_container(OmegaConf.load(StringIO(text)), resolve=True)
    except YAMLError as error:
        raise UserError(explain_yaml(error, str(path))) from error
    # OSError: neither mapping nor list; ValueError: a number of more digits than Python reads.
    except (OmegaConfBaseException, OSError, ValueError) as error:
        first = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(f"{path}: cannot be read ({first}); give the folder of a run made by src.train") from error
    # A list, or a text alone, which OmegaConf takes for a key.
    if not isinstance(config, dict) or not config.keys() & set(SECTIONS):
        raise UserError(
            f"{path}: is not the config of a run (it has no model, data, ...); give a run made by src.train"
        )
    for name in SECTIONS:
        if name in config and not isinstance(config[name], dict):
            raise UserError(f"{path}: {name}={config[name]!r}: expected a section of keys, as src.train writes it")
    return {str(key): value for key, value in config.items()}


def typed_section(path: Path, name: str, schema: type, given: Mapping[str, Any]) -> DictConfig:
    """A section of the config at `path` as its schema's types; missing keys, as in an older run, get their defaults.

    Raises:
        UserError: naming file, key and problem, for a value of another type, out of its range, or an unknown key.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    from src.config.checks import check_values
    from src.config.schema import structured
    from src.config.setting import settings

    try:
        whole: Any = OmegaConf.merge(structured(schema), literal(given))
        check_values(OmegaConf.to_container(whole, resolve=True), settings(schema), f"{name}.")
    except OmegaConfBaseException as error:
        key, first = error.full_key, next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(f"{path}: {f'{name}.{key}' if key else name}: {first}; correct it there") from error
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    return cast("DictConfig", whole)
