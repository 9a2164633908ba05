"""Experts whose judge is a frozen model: keeps the model out of the metric; batches, devices, precision."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from src.rewards.base import RewardExpert
from src.values import PromptRecord


@dataclass(frozen=True)
class _Held:
    """Hides a model from ``nn.Module``, which would register it as a submodule."""

    model: Any


class FrozenModelExpert(RewardExpert):
    """An expert around a frozen model; subclasses load it and write `score_batch`.

    The model follows the expert from device to device but is not one of its submodules: its weights enter neither the
    expert's state dict nor a checkpoint. It is in evaluation mode, without gradients, and runs
    in the precision of its own weights, whatever autocast the caller is in. Pickled, an expert is its
    arguments and the metric's state: the copy reads the weights from their files again.

    Args:
        load: returns the ``nn.Module``; called after the settings are checked.
        batch_size: images the model sees at once, >= 1; affects only memory and speed.
    """

    _arguments: tuple[tuple[Any, ...], dict[str, Any]]

    def __new__(cls, *args: Any, **kwargs: Any) -> FrozenModelExpert:
        expert = super().__new__(cls)
        expert.__dict__["_arguments"] = args, kwargs
        return expert

    def __init__(self, load: Callable[[], nn.Module], batch_size: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size}: expected at least 1")
        self.batch_size = batch_size
        self._held = _Held(load().eval().requires_grad_(False))

    @property
    def model(self) -> Any:
        """The frozen model, on the expert's device."""
        return self._held.model

    def weight_bytes(self) -> int:
        return sum(x.numel() * x.element_size() for x in (*self.model.parameters(), *self.model.buffers()))

    @abstractmethod
    def score_batch(self, pixels: Tensor, records: Sequence[PromptRecord]) -> Tensor:
        """Scores (N,) of at most `batch_size` images (N, 3, H, W); see `score`."""

    def batches(self, records: Sequence[PromptRecord]) -> list[list[int]]:
        """Which rows the model sees together: each row in exactly one batch of at most `batch_size`."""
        return in_chunks(list(range(len(records))), self.batch_size)

    def score(self, pixels: Tensor, records: Sequence[PromptRecord]) -> Tensor:
        """Scores (N,) float32 of pixels (N, 3, H, W) float32 in [0, 1], batch by batch."""
        scores = torch.empty(len(records), device=pixels.device)
        with torch.no_grad(), torch.autocast(pixels.device.type, enabled=False):
            for rows in self.batches(records):
                scores[rows] = self.score_batch(pixels[rows], [records[row] for row in rows]).float()
        return scores

    def _apply(self, fn: Callable[..., Any], *args: Any, **kwargs: Any) -> nn.Module:
        moved = super()._apply(fn, *args, **kwargs)
        self.model.to(self.device)
        return moved

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in super().__getstate__().items() if name != "_held"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        args, kwargs = self._arguments
        self._held = type(self)(*args, **kwargs)._held
        self.model.to(self.device)


def in_chunks(rows: list[int], size: int) -> list[list[int]]:
    """`rows` in order, cut into pieces of `size` (the last one shorter)."""
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def batches_of_equal_length(lengths: Sequence[int], size: int) -> list[list[int]]:
    """Rows grouped by their length, in pieces of at most `size`; rows keep their order inside a group."""
    groups: dict[int, list[int]] = {}
    for row, length in enumerate(lengths):
        groups.setdefault(length, []).append(row)
    return [piece for rows in groups.values() for piece in in_chunks(rows, size)]
