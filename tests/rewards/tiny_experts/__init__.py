"""Experts with weights, tiny: one module an expert, found by the contract test.

Each has `EXPERT` (the class), `SIDE` (of the noise images it is tried on), `write(folder)` (writes tiny random
weights of the real model classes, in the layout that is published, and gives the constructor's arguments) and
`records(count)` (applicable records).
"""

from __future__ import annotations

import importlib
import pkgutil
from pathlib import Path
from typing import Protocol

from src.rewards.base import RewardExpert
from src.values import PromptRecord


class TinyExpert(Protocol):
    """What a module of this package offers."""

    EXPERT: type[RewardExpert]
    SIDE: int

    def write(self, folder: Path) -> dict[str, object]: ...

    def records(self, count: int) -> list[PromptRecord]: ...


def found() -> list[TinyExpert]:
    """All modules of this package that hold an expert."""
    modules = [importlib.import_module(f"{__name__}.{module.name}") for module in pkgutil.iter_modules(__path__)]
    return [module for module in modules if hasattr(module, "EXPERT")]  # type: ignore[misc]
