"""The Lightning data module of prompts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities import rank_zero_warn

from src.data.hub_dataset import read_dataset
from src.data.lines import BadLines
from src.data.records import PromptDataError
from src.data.splits import SPLITS, PromptSplits, hold_out, load_splits
from src.data.stream import PromptStream
from src.values import PromptRecord


class PromptDataModule(LightningDataModule):
    """Prompts from files or a data set: an endless training stream, and record lists for validation and test.

    path: a directory with train.jsonl, validation.jsonl and test.jsonl, or one file (.jsonl, or .txt with one prompt
    per line). dataset: instead of a path, a data set's name for `datasets`, with its `split`, `dataset_config` and
    `columns` (see `read_dataset`). Of one file or data set the share `held_out` goes to validation and as much
    to test. prompts_per_step: prompts of one optimiser step over all ranks. seed: of the order and of the hold-out.
    on_error: "raise" at the first bad line, or "skip" bad ones, counted in `skipped`, with one warning. Everything
    is read at the first use of any split; raises PromptDataError then, ValueError for a choice that cannot work.

    `start_step` is the number of the first batch the training stream will give; set it to continue a run.
    Evaluation does its own batching, so there are no validation or test loaders.
    """

    def __init__(
        self,
        path: str | Path | None = None,
        prompts_per_step: int = 1,
        seed: int = 0,
        held_out: float = 0.05,
        dataset: str | None = None,
        dataset_config: str | None = None,
        split: str = "train",
        columns: Mapping[str, str] | None = None,
        on_error: str = "raise",
    ) -> None:
        super().__init__()
        if prompts_per_step < 1:
            raise ValueError(f"rollout.prompts_per_step={prompts_per_step}: expected at least 1")
        if (path is None) == (dataset is None):
            given = "neither is set" if path is None else f"both are set ({path}, {dataset})"
            raise ValueError(f"data.path, data.dataset: {given}; give one of them")
        self.path = None if path is None else Path(path).expanduser()
        self.prompts_per_step = prompts_per_step
        self.seed = seed
        self.held_out = held_out
        self.dataset, self.dataset_config, self.split = dataset, dataset_config, split
        self.columns = dict(columns or {})
        self.start_step = 0
        self._bad = BadLines(on_error)

    @cached_property
    def splits(self) -> PromptSplits:
        """All records, read once."""
        splits = self._read()
        self._tell(self._bad.problems)
        return splits

    def refuse(self, problem: Callable[[str], str | None]) -> None:
        """Treat prompts with a problem as bad lines: the first raises, or all are left out and counted.

        problem: what is wrong with a prompt, None if nothing is. Raises PromptDataError also where a split has no
        prompt left.
        """

        def checked(record: PromptRecord) -> PromptRecord:
            if found := problem(record.prompt):
                raise PromptDataError(f"{record.place or 'prompts'}: {found}")
            return record

        before, splits = self.skipped, self.splits
        kept = PromptSplits(*(tuple(self._bad.good(getattr(splits, name), checked)) for name in SPLITS))
        for name in SPLITS:
            if not getattr(kept, name):
                source = self.path or self.dataset
                raise PromptDataError(
                    f"{source}: no prompts left for {name}; the last problem: {self._bad.problems[-1]}"
                )
        self.splits = kept
        self._tell(self._bad.problems[before:])

    def _tell(self, problems: Sequence[str]) -> None:
        if problems:
            rank_zero_warn(
                f"data.on_error=skip: {len(problems)} bad lines were left out of {self.path or self.dataset}, the"
                f" first: {problems[0]}",
            )

    def _read(self) -> PromptSplits:
        if self.path is not None:
            return load_splits(self.path, self.seed, self.held_out, self._bad)
        assert self.dataset is not None
        records = read_dataset(self.dataset, self.split, self.dataset_config, self.columns, self._bad)
        return hold_out(records, self.seed, self.held_out, self.dataset)

    @property
    def skipped(self) -> int:
        """How many bad lines were left out."""
        _ = self.splits
        return len(self._bad.problems)

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
        """Read the files, so that errors in them show before anything else starts."""
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
