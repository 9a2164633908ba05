"""Reward experts that fail in each of the ways an expert can."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from src.values import PromptRecord
from tests.training.experts import Red


class Faulty(Red):
    """Red's scores, until from the `calls`-th call on it misbehaves: how, says `fault`."""

    name = "faulty"

    def __init__(self, fault: str, calls: int = 0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.fault, self.calls, self.seen = fault, calls, 0

    def score(self, pixels: Tensor, records: Sequence[PromptRecord]) -> tuple[Tensor, Mapping[str, Tensor]]:
        self.seen += 1
        score, details = super().score(pixels, records)
        if self.seen <= self.calls:
            return score, details
        if self.fault == "raises":
            raise ZeroDivisionError("no such picture")
        if self.fault == "hangs":
            time.sleep(600)
        if self.fault == "hangs with Python's lock":
            ctypes.PyDLL(None).sleep(600)
        if self.fault == "nan":
            score = torch.full_like(score, float("nan"))
        return (score[:, None] if self.fault == "shape" else score), details
