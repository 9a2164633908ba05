"""The Lightning data module of prompts."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningDataModule

from src.data.splits import PromptSplits, load_splits
from src.data.stream import PromptStream
from src.values import PromptRecord


class PromptDataModule(LightningDataModule):
    """Prompts from JSONL: an endless training stream, and record lists for validation and test.

    path: a directory with train.jsonl, validation.jsonl and test.jsonl, or one file of which the share
    `held_out` goes to validation and as much to test. prompts_per_step: prompts of one optimiser step over
    all ranks. seed: of the order and of the hold-out. The files are read at the first use of any split;
    raises PromptDataError then, ValueError for a number that does not fit.

    `start_step` is the number of the first batch the training stream will give; set it to continue a run.
    Evaluation does its own batching, so there are no validation or test loaders.
    """

    def __init__(self, path: str | Path, prompts_per_step: int, seed: int = 0, held_out: float = 0.05) -> None:
        super().__init__()
        if prompts_per_step < 1:
            raise ValueError(f"rollout.prompts_per_step={prompts_per_step}: expected at least 1")
        self.path = Path(path)
        self.prompts_per_step = prompts_per_step
        self.seed = seed
        self.held_out = held_out
        self.start_step = 0

    @cached_property
    def splits(self) -> PromptSplits:
        """All records, read once."""
        return load_splits(self.path, self.seed, self.held_out)

    @property
    def train_records(self) -> tuple[PromptRecord, ...]:
        """The prompts trained on."""
        return self.splits.train

    @property
    def validation_records(self) -> tuple[PromptRecord, ...]:
        """The prompts that choose the checkpoint."""
        return self.splits.validation

    @property
    def test_records(self) -> tuple[PromptRecord, ...]:
        """The prompts of the final report."""
        return self.splits.test

    def setup(self, stage: str) -> None:
        """Read the files, so that what is wrong with them shows before anything else starts."""
        _ = self.splits

    def train_dataloader(self) -> PromptStream:
        """This rank's stream of `PromptBatch`, starting at `start_step`."""
        rank, world_size = (0, 1) if self.trainer is None else (self.trainer.global_rank, self.trainer.world_size)
        stream = PromptStream(self.train_records, self.prompts_per_step, self.seed, rank, world_size)
        stream.start_step = self.start_step
        return stream

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """A batch of prompts holds no tensor; Lightning's own transfer refuses frozen dataclasses."""
        return batch
