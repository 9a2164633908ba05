"""Where Hydra reads config files from: its own sources, with each file's bounds checked before it is parsed."""

from __future__ import annotations

from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path

from hydra._internal.core_plugins import file_config_source, importlib_resources_config_source
from hydra._internal.sources_registry import SourcesRegistry
from hydra.plugins.config_source import ConfigResult

from src.config.yaml_bounds import check_yaml, read_bounded

# The text of every file that was read since `register_sources`, by its name: for messages about a value.
_texts: dict[str, str] = {}


# The registry knows a source by its class's name: Hydra's own, which it would register later, then stay away.
class FileConfigSource(file_config_source.FileConfigSource):
    """Files in a folder: configs/, and those of ``hydra.searchpath=[file:///...]``."""

    def load_config(self, config_path: str) -> ConfigResult:
        """Raises UserError for a file that is out of bounds or not YAML."""
        path = Path(self.path, self._normalize_file_name(config_path))
        if path.is_file():  # else Hydra says what it looked for
            _check(path, str(path))
        return super().load_config(config_path)


class ImportlibResourcesConfigSource(importlib_resources_config_source.ImportlibResourcesConfigSource):
    """Files in a package: ``hydra.searchpath=[pkg://...]``, and Hydra's own."""

    def load_config(self, config_path: str) -> ConfigResult:
        """Raises UserError for a file that is out of bounds or not YAML."""
        name = self._normalize_file_name(config_path)
        resource = resources.files(self.path).joinpath(name)
        if resource.is_file():
            _check(resource, f"{self.path}/{name}")
        return super().load_config(config_path)


def register_sources() -> None:
    """Let Hydra read through the sources of this module; idempotent."""
    for source in (FileConfigSource, ImportlibResourcesConfigSource):
        SourcesRegistry.instance().types[source.scheme()] = source
    _texts.clear()


def file_with(text: str) -> str | None:
    """The file that `text` was read from, as far as files of configs/ and the search path go."""
    return next((name for name, content in _texts.items() if text in content), None)


def file_named(config: str) -> str | None:
    """The file that Hydra read for the config of this name (``experiment/dapo.yaml``), if it read one."""
    return next((name for name in _texts if name.endswith(f"/{config}")), None)


def _check(resource: Path | Traversable, name: str) -> None:
    _texts[name] = read_bounded(resource, name)
    check_yaml(_texts[name], name)
