"""``python -m tests.training.failing_worker RANK [key=value ...]``: src.train; RANK runs out of memory in step 1."""

from __future__ import annotations

import sys
from typing import Any

import torch

from src.cli import command as cli
from src.train import COMMAND
from src.training.module import BiCoTModule


def fail_on(rank: int) -> None:
    """Make the second optimiser step of `rank` run out of memory."""
    original = BiCoTModule.training_step

    def training_step(self: BiCoTModule, *arguments: Any) -> Any:
        if self.trainer.global_rank == rank and self.trainer.global_step == 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
        return original(self, *arguments)

    BiCoTModule.training_step = training_step  # type: ignore[method-assign]


if __name__ == "__main__":
    fail_on(int(sys.argv[1]))
    sys.exit(cli.run(COMMAND, sys.argv[2:]))
