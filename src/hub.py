"""Weights that others publish: a path of the user's, else the Hugging Face cache, else the hub."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path


class WeightsNotFound(ValueError):
    """Published weights are not at hand; the message names the key, the repository and what to do."""


def find_directory(
    key: str, path: str | Path | None, repository: str | None, patterns: Sequence[str] | None = None
) -> Path:
    """The directory of a model: `path`, or without one the snapshot of `repository`.

    key: the config key of `path`, for messages, such as ``model.path``. patterns: globs of the files needed; None:
    all. A snapshot is taken from the local cache where it is there, else downloaded (never under
    ``HF_HUB_OFFLINE=1``). No remote code is run here or by what reads the directory.

    Raises:
        WeightsNotFound: if there is no such directory, or the snapshot cannot be had.
    """
    if path is not None:
        folder = Path(path).expanduser()
        if not folder.is_dir():
            raise WeightsNotFound(f"{key}={path}: no such directory")
        return folder
    from huggingface_hub import snapshot_download

    wanted = None if patterns is None else list(patterns)
    return _fetched(
        key, repository, "", lambda name, local: snapshot_download(name, allow_patterns=wanted, local_files_only=local)
    )


def find_file(key: str, path: str | Path | None, repository: str | None, filename: str) -> Path:
    """One file of published weights: `path`, or without one `filename` of `repository`; see `find_directory`."""
    if path is not None:
        file = Path(path).expanduser()
        if not file.is_file():
            raise WeightsNotFound(f"{key}={path}: no such file; give the path of {filename}")
        return file
    from huggingface_hub import hf_hub_download

    return _fetched(
        key, repository, f" {filename}", lambda name, local: hf_hub_download(name, filename, local_files_only=local)
    )


def _fetched(key: str, repository: str | None, what: str, fetch: Callable[[str, bool], str]) -> Path:
    """What ``fetch(repository, local_only)`` finds in the cache, else on the hub."""
    if repository is None:
        raise WeightsNotFound(f"{key}: not set; give the path of the weights")
    try:
        return Path(fetch(repository, True))
    except Exception:  # noqa: S110 (whatever kept it from the cache, the hub is asked next)
        pass
    try:
        return Path(fetch(repository, False))
    except Exception as error:
        reason = next(iter(str(error).strip().splitlines()), "no reason given")
        raise WeightsNotFound(
            f"the weights of {repository} are neither in the local Hugging Face cache nor available from the hub"
            f" ({type(error).__name__}: {reason}); download them on a machine with a network"
            f" (`hf download {repository}{what}`), or set {key}"
        ) from error
