"""Splits and the data module, inside Lightning's own Trainer."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning
import pytest
import torch

from src.data.module import PromptDataModule
from src.data.records import PromptDataError
from src.data.splits import hold_out, load_splits
from src.values import PromptBatch, as_records

FIXTURE = Path(__file__).parent / "prompts.jsonl"


def write(path: Path, prompts: list[str]) -> None:
    path.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts), encoding="utf-8")


def directory(path: Path, **splits: list[str]) -> Path:
    for name, prompts in splits.items():
        write(path / f"{name}.jsonl", prompts)
    return path


def test_a_directory_gives_its_three_files(tmp_path: Path) -> None:
    path = directory(tmp_path, train=["a", "b"], validation=["c"], test=["d", "e"])
    module = PromptDataModule(path, prompts_per_step=1)
    assert module.train_records == as_records(["a", "b"])
    assert module.validation_records == as_records(["c"])
    assert module.test_records == as_records(["d", "e"])


def test_a_directory_without_a_split_is_refused(tmp_path: Path) -> None:
    path = directory(tmp_path, train=["a"])
    with pytest.raises(PromptDataError, match=r"validation\.jsonl, test\.jsonl missing"):
        load_splits(path)


def test_a_training_prompt_in_another_split_is_warned_of(tmp_path: Path) -> None:
    path = directory(tmp_path, train=["a", "b"], validation=["b"], test=["c"])
    with pytest.warns(UserWarning, match=r"1 prompts of train\.jsonl are also in validation\.jsonl, such as 'b'"):
        load_splits(path)


def test_disjoint_splits_are_not(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_splits(directory(tmp_path, train=["a"], validation=["b"], test=["c"]))


def test_one_file_is_split_by_prompt_without_loss() -> None:
    records = list(as_records([f"prompt {i % 50}" for i in range(120)]))
    splits = hold_out(records, seed=0, held_out=0.1)
    parts = [{record.prompt for record in part} for part in (splits.train, splits.validation, splits.test)]
    assert [len(part) for part in parts] == [40, 5, 5]
    assert len(set.union(*parts)) == 50
    assert sum(map(len, (splits.train, splits.validation, splits.test))) == 120
    assert hold_out(records, seed=0, held_out=0.1) == splits
    assert hold_out(records, seed=1, held_out=0.1) != splits


def test_the_hold_out_does_not_depend_on_the_order_of_the_file() -> None:
    records = list(as_records([f"prompt {i}" for i in range(30)]))
    forth, back = hold_out(records, 0, 0.1), hold_out(records[::-1], 0, 0.1)
    assert forth.validation == back.validation[::-1]
    assert forth.test == back.test[::-1]


def test_three_prompts_are_enough_and_two_are_not() -> None:
    splits = hold_out(list(as_records(["a", "b", "c"])), 0, 0.4)
    assert [len(part) for part in (splits.train, splits.validation, splits.test)] == [1, 1, 1]
    with pytest.raises(PromptDataError, match="2 different prompts are too few"):
        hold_out(list(as_records(["a", "b", "a"])), 0, 0.1)


@pytest.mark.parametrize("share", [0.0, 0.5, -0.1])
def test_a_share_that_cannot_be_names_the_key(share: float) -> None:
    with pytest.raises(ValueError, match=r"data\.held_out="):
        hold_out(list(as_records(["a", "b", "c"])), 0, share)


def test_setup_reads_the_files_so_that_errors_come_early(tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text('{"prompt": 1}\n')
    with pytest.raises(PromptDataError, match=r"p\.jsonl:1: field 'prompt'"):
        PromptDataModule(tmp_path / "p.jsonl", 1).setup("fit")


def test_prompts_per_step_must_be_positive() -> None:
    with pytest.raises(ValueError, match=r"rollout\.prompts_per_step=0"):
        PromptDataModule(FIXTURE, prompts_per_step=0)


def test_rank_and_world_size_come_from_the_trainer() -> None:
    module = PromptDataModule(FIXTURE, prompts_per_step=6, seed=2)
    module.trainer = SimpleNamespace(global_rank=1, world_size=3)  # type: ignore[assignment]
    stream = module.train_dataloader()
    assert stream.batch(0).positions == (2, 3)
    module.trainer = SimpleNamespace(global_rank=0, world_size=4)  # type: ignore[assignment]
    with pytest.raises(ValueError, match=r"rollout\.prompts_per_step=6.*ranks, 4"):
        module.train_dataloader()


class Recorder(lightning.LightningModule):
    """Keeps the batches it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.batches: list[PromptBatch] = []

    def training_step(self, batch: PromptBatch, batch_index: int) -> torch.Tensor:
        self.batches.append(batch)
        return self.weight * 1.0

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_lightning_trains_on_the_endless_stream_from_any_step() -> None:
    module, recorder = PromptDataModule(FIXTURE, prompts_per_step=3, seed=4), Recorder()
    module.start_step = 7
    trainer = lightning.Trainer(
        max_steps=4,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(recorder, datamodule=module)
    stream = PromptDataModule(FIXTURE, prompts_per_step=3, seed=4).train_dataloader()
    assert recorder.batches == [stream.batch(step) for step in (7, 8, 9, 10)]
