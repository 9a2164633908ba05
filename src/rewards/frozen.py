"""Experts that look through a frozen network: where it is kept, and how its published weights are read."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from src.hub import WeightsNotFound, find_directory

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
FILES = ("*.json", "*.txt", "*.safetensors")


class HoldsNetwork:
    """Mixed into a `RewardExpert`, before it: a frozen transformers network that is no part of the expert's state.

    An ``nn.Module`` registers the modules it is given as attributes; behind a tuple the network stays out of
    `state_dict`, `parameters` and checkpoints. It follows the expert from device to device, keeps its dtype,
    and stays in evaluation mode. A pickled expert carries it along.
    """

    _held: tuple[Any, ...] = ()
    device: torch.device

    def hold(self, network: nn.Module) -> None:
        """Keep `network`, frozen."""
        self._held = (network.eval().requires_grad_(False),)

    @property
    def network(self) -> Any:
        """The network."""
        return self._held[0]

    def _apply(self, *args: Any, **kwargs: Any) -> Any:
        moved = super()._apply(*args, **kwargs)  # type: ignore[misc]
        for network in self._held:
            network.to(self.device)
        return moved

    def __getstate__(self) -> dict[str, Any]:
        # On its first forward transformers hangs hooks on a network that cannot be pickled; all else can.
        state = super().__getstate__()  # type: ignore[misc]
        held = tuple((type(network), network.config, network.dtype, network.state_dict()) for network in self._held)
        return {**state, "_held": held}

    def __setstate__(self, state: dict[str, Any]) -> None:
        held = tuple(_rebuilt(*parts) for parts in state["_held"])
        super().__setstate__({**state, "_held": held})  # type: ignore[misc]

    @contextmanager
    def looking(self) -> Iterator[None]:
        """Without graph and in the network's own dtype: the trainer's mixed precision does not reach it."""
        with torch.no_grad(), torch.autocast(self.device.type, enabled=False):
            yield


def _rebuilt(kind: type[Any], config: Any, dtype: torch.dtype, weights: Mapping[str, Tensor]) -> Any:
    """The network that `HoldsNetwork.__getstate__` took apart."""
    with torch.random.fork_rng(devices=[]):  # what it is initialised with is overwritten
        network = kind(config).to(dtype).eval().requires_grad_(False)
    network.load_state_dict(weights)
    return network.to(next(iter(weights.values())).device)


def dtype_of(key: str, name: str) -> torch.dtype:
    """The dtype called `name`; raises ValueError naming `key` for another word."""
    if name not in DTYPES:
        raise ValueError(f"{key}={name}: expected one of {', '.join(DTYPES)}")
    return DTYPES[name]


def load_network(
    network: type[Any], kind: str, key: str, path: str | Path | None, repository: str | None, dtype: torch.dtype
) -> tuple[Any, Any]:
    """A transformers network of class `network` with its tokenizer, from `path` or else `repository`.

    kind: the model_type its config must have. Every weight must be there: nothing is left as initialised.

    Raises:
        WeightsNotFound: naming `key`, if the directory is not to be had or is not such a model's.
    """
    from transformers import AutoTokenizer

    folder = find_directory(key, path, repository, FILES)
    _check_kind(folder, kind, key)
    try:
        model, report = network.from_pretrained(folder, dtype=dtype, local_files_only=True, output_loading_info=True)
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:
        raise WeightsNotFound(f"{key}={folder}: cannot be loaded: {type(error).__name__}: {error}") from error
    if missing := sorted(report["missing_keys"]):
        raise WeightsNotFound(f"{key}={folder}: {len(missing)} weights are missing, such as {missing[0]}")
    return model, tokenizer


def _check_kind(folder: Path, kind: str, key: str) -> None:
    """Raise WeightsNotFound unless the folder's config.json is of a model of this kind."""
    config = folder / "config.json"
    try:
        content = json.loads(config.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise WeightsNotFound(f"{config}: cannot be read ({error}); {key} must be a model's directory") from error
    found = content.get("model_type") if isinstance(content, dict) else None
    if found != kind:
        raise WeightsNotFound(f"{config}: model_type is {found!r}, expected {kind!r}; give another directory as {key}")
