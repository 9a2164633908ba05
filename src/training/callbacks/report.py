"""Before and after on the test prompts: sheets of samples, the adapter, summary.json."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from src.rewards.base import RewardError
from src.runs.console import say
from src.runs.files import read_before
from src.runs.folder import RunFolder, write_json, write_text
from src.runs.metrics_file import MetricsFile
from src.runs.output_folder import replaced_whole
from src.runs.phases import phase
from src.runs.provenance import git_commit, peak_memory, versions
from src.runs.sound_files import saving
from src.training.callbacks.graceful import GracefulStop
from src.training.callbacks.reward_watch import RewardWatch
from src.training.callbacks.validation import BestByValidation, load_weights
from src.training.held_out import Evaluation, EvaluationSettings, evaluate, pictures
from src.training.module import BiCoTModule
from src.training.pictures import sheet
from src.values import PromptRecord

# What a run cost, as its summary and its loggers name it.
COSTS = ("seconds_total", "seconds_per_step", "peak_memory_gib")


class RunReport(Callback):
    """Evaluates the test prompts before training and, with the best weights by validation, after it.

    The adapter that is written is the one reported. Everything lands in the run folder, before.json as the last file of
    the first report, the summary last of all: a folder with a finished summary is complete. initial: the trained
    parameters as they were when the run began, needed where it is resumed and a part of its first report is missing.
    """

    def __init__(
        self,
        folder: RunFolder,
        records: Sequence[PromptRecord],
        settings: EvaluationSettings,
        picture_prompts: int,
        validation: BestByValidation,
        watch: RewardWatch,
        stop: GracefulStop,
        facts: dict[str, Any],
        started: float,
        initial: Mapping[str, Tensor] | None = None,
    ) -> None:
        self.initial = initial
        self.folder = folder
        self.records = records
        self.settings = settings
        self.pictured = spread(records, picture_prompts)
        self.validation = validation
        self.watch = watch
        self.stop = stop
        self.facts = facts
        self.before: dict[str, Any] = {}
        self.seconds_training = 0.0
        self.seconds_before_run = 0.0
        self.memory_before_run = 0.0
        self.started = started
        self._entered = 0.0
        self.summary: dict[str, Any] = {}

    def state_dict(self) -> dict[str, Any]:
        return {
            "seconds_training": self._training_seconds(),
            "seconds_total": self._total_seconds(),
            "peak_memory_gib": self._peak_memory(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.seconds_training = state_dict["seconds_training"]
        self.seconds_before_run = state_dict["seconds_total"]
        self.memory_before_run = state_dict.get("peak_memory_gib", 0.0)  # older checkpoints do not say

    def on_train_start(self, trainer: L.Trainer, pl_module: BiCoTModule) -> None:
        if trainer.strategy.broadcast(self.folder.before_is_whole()):
            self.before = read_before(self.folder)
            for logger in trainer.loggers:
                if isinstance(logger, MetricsFile):
                    logger.drop_figures(("test/", *COSTS), after=0)
                    # A kill may have come between before.json and the first rows on disk.
                    logger.log_metrics(_means(self.before), step=0)
        else:
            with self._weights_before_training(pl_module):
                self._report_before(trainer, pl_module)
            for logger in trainer.loggers:
                logger.log_metrics(_means(self.before), step=0)
        say(f"test before: {_shown(self.before['means'])}")
        self.validation.seconds = 0.0
        self._entered = time.perf_counter()

    def _report_before(self, trainer: L.Trainer, module: BiCoTModule) -> None:
        self.before = self._evaluated(module, "before")
        if trainer.is_global_zero:
            self._sheet(module, "before", self.before["means"])
            write_json(self.folder.before, self.before)

    @contextmanager
    def _weights_before_training(self, module: BiCoTModule) -> Iterator[None]:
        """The weights the run began with, where `initial` says that others are trained by now."""
        if self.initial is None:
            yield
            return
        trained = [
            (parameter, parameter.detach().clone()) for parameter in module.parameters() if parameter.requires_grad
        ]
        module.load_trained_state(self.initial)
        try:
            yield
        finally:
            with torch.no_grad():
                for parameter, value in trained:
                    parameter.copy_(value)
            module.weights_changed()
            self.initial = None

    def on_train_end(self, trainer: L.Trainer, pl_module: BiCoTModule) -> None:
        self.seconds_training, self._entered = self._training_seconds(), 0.0
        load_weights(self.folder.best_weights, pl_module)
        if trainer.is_global_zero and getattr(pl_module.policy, "adapter", None) is not None:
            with saving(self.folder.adapter), replaced_whole(self.folder.adapter) as folder:
                pl_module.policy.adapter.save_pretrained(str(folder))
        self._write_summary(trainer, self._summarised(trainer, after=None))
        after = self._evaluated(pl_module, "after")
        if trainer.is_global_zero:
            self._sheet(pl_module, "after", after["means"])
        summary = self._summarised(trainer, after)
        if self.stop.code is None:  # an interrupted run reports again at its real end
            for logger in trainer.loggers:
                logger.log_metrics(_means(after) | {name: summary[name] for name in COSTS}, step=trainer.global_step)
                if isinstance(logger, MetricsFile):
                    logger.save()
        # Last of all files: with it the folder is complete, and nothing is made again.
        self._write_summary(trainer, summary)

    def on_fit_end(self, trainer: L.Trainer, pl_module: BiCoTModule) -> None:
        """A run that was stopped between its last step and its report: nothing is left to train, only to report."""
        if self.summary:
            return
        self.on_train_start(trainer, pl_module)
        self.on_train_end(trainer, pl_module)

    def _evaluated(self, module: BiCoTModule, when: str) -> dict[str, Any]:
        say(f"test {when}: {len(self.records)} prompts ...")
        # The report after a first signal still counts; only a second one, raised by the handler, ends it.
        between = self.stop.check if when == "before" else lambda done, total: None
        try:
            with phase(f"test prompts {when} training"):
                evaluation: Evaluation = evaluate(
                    module.policy, module.policy.decoder(), module.rewards, self.records, self.settings, "test", between
                )
        except RewardError as error:
            raise RewardError(error.expert, f"test prompts {when} training: {error.problem}", error.prompt) from error
        if module.trainer.is_global_zero:
            lines = (json.dumps(asdict(sample), ensure_ascii=False) for sample in evaluation.samples)
            write_text(self.folder.test_samples(when), "".join(line + "\n" for line in lines))
        return {"means": evaluation.means(), "by_kind": evaluation.by_kind()}

    def _sheet(self, module: BiCoTModule, when: str, means: dict[str, float]) -> None:
        plans, pixels = pictures(module.policy, module.policy.decoder(), self.pictured, self.settings)
        report = module.rewards(pixels, self.pictured)
        module.rewards.reset()
        captions = [
            f"{record.task_type}   reward {reward:.2f}"
            for record, reward in zip(self.pictured, report.total.tolist(), strict=True)
        ]
        title = f"{when} training: {_shown(means)} over {len(self.records)} test prompts"
        with saving(self.folder.samples(when)):
            sheet(self.folder.samples(when), title, [r.prompt for r in self.pictured], plans, pixels, captions)

    def _training_seconds(self) -> float:
        """Wall time inside training, evaluations left out, earlier sittings included."""
        running = time.perf_counter() - self._entered - self.validation.seconds if self._entered else 0.0
        return self.seconds_training + running

    def _peak_memory(self) -> float:
        return max(self.memory_before_run, peak_memory())

    def _total_seconds(self) -> float:
        return self.seconds_before_run + time.time() - self.started

    def _write_summary(self, trainer: L.Trainer, summary: dict[str, Any]) -> None:
        self.summary = summary
        if trainer.is_global_zero:
            write_json(self.folder.summary, summary)

    def _summarised(self, trainer: L.Trainer, after: dict[str, Any] | None) -> dict[str, Any]:
        steps = trainer.global_step
        return {
            **self.facts,
            "finished": after is not None and self.stop.code is None,
            "interrupted_by_signal": None if self.stop.code is None else self.stop.code - 128,
            "steps": steps,
            "microbatch": trainer.lightning_module.microbatch,
            "seconds_total": round(self._total_seconds(), 2),
            "seconds_training": round(self.seconds_training, 2),
            "seconds_per_step": round(self.seconds_training / max(1, steps), 4),
            "peak_memory_gib": round(self._peak_memory(), 3),
            "best_step": self.validation.best_step,
            "best_validation": self.validation.best,
            "reward_warnings": list(self.watch.warnings.values()),
            **_before_and_after(self.before, after),
            "git_commit": git_commit(),
            "versions": versions(),
        }


def _means(report: dict[str, Any]) -> dict[str, float]:
    """A report's means under the names they have at the loggers."""
    return {f"test/{name}": value for name, value in report["means"].items()}


def spread(records: Sequence[PromptRecord], number: int) -> tuple[PromptRecord, ...]:
    """Up to `number` different records, from all kinds in turn, evenly over each kind; all if there are no more."""
    kinds: dict[str, list[PromptRecord]] = {}
    for record in records:
        kinds.setdefault(record.task_type, []).append(record)
    share = len(records) if len(records) <= number else -(-number // max(1, len(kinds)))
    columns = [evenly(group, min(share, len(group))) for group in kinds.values()]
    turns = [column[i] for i in range(share) for column in columns if i < len(column)]
    return tuple(turns[:number])


def evenly(group: Sequence[PromptRecord], number: int) -> list[PromptRecord]:
    """`number` <= len(group) different ones, spread evenly over `group`."""
    return [group[place * len(group) // number] for place in range(number)]


def _before_and_after(before: dict[str, Any], after: dict[str, Any] | None) -> dict[str, Any]:
    """Flat keys ``<figure>_before`` / ``<figure>_after``, and the same by kind of prompt."""
    figures: dict[str, Any] = {}
    for when, result in (("before", before), ("after", after)):
        figures |= {f"reward_{when}": None, f"all_correct_{when}": None}
        if result is not None:
            figures |= {f"{name}_{when}": round(value, 5) for name, value in result["means"].items()}
    figures["by_kind"] = {
        kind: {
            "before": before["by_kind"][kind],
            "after": None if after is None else after["by_kind"][kind],
        }
        for kind in before["by_kind"]
    }
    return figures


def _shown(means: dict[str, float]) -> str:
    return ", ".join(f"{name} {means[name]:.3f}" for name in ("reward", "all_correct") if name in means)
