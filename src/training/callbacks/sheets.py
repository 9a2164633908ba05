"""What each validation drew, as one sheet of samples a validation: in the run folder and at the loggers, by step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from lightning.pytorch.loggers import Logger
from torch import Tensor, stack

from src.runs.sound_files import saving
from src.training.held_out import SampledBatch
from src.training.pictures import sheet
from src.values import PromptRecord

KEY = "validation"  # the pictures' name at the loggers


@dataclass(frozen=True, slots=True)
class _Drawn:
    """One sample of the running validation; pixels (3, H, W) on the CPU."""

    record: PromptRecord
    plan: str
    pixels: Tensor
    reward: float | None

    @property
    def caption(self) -> str:
        reward = "no reward" if self.reward is None else f"reward {self.reward:.2f}"
        return f"{self.record.task_type}   {reward}"


class ValidationSheets:
    """Keeps the chosen prompts' samples while a validation runs, then writes them as one PNG.

    Nothing is rolled out for it: what is shown are samples that were scored. With several ranks a sheet shows
    those of the chosen prompts that rank 0 evaluated. The same prompts and noise come at every validation, so
    that the sheets of two steps, or of two runs, are compared tile by tile.
    """

    def __init__(
        self, records: Sequence[PromptRecord], chosen: Sequence[PromptRecord], path: Callable[[int], Path]
    ) -> None:
        self._records = records
        identities = {id(record) for record in chosen}
        self._wanted = {index for index, record in enumerate(records) if id(record) in identities}
        self._path = path
        self._drawn: dict[int, _Drawn] = {}

    def take(self, batch: SampledBatch) -> None:
        """Keep the wanted samples of an evaluated batch, of each prompt the last (`evaluate`'s ``seen``)."""
        for row, sample in enumerate(batch.samples):
            if sample.index in self._wanted:
                pixels = batch.rollouts.pixels[row].detach().cpu()
                self._drawn[sample.index] = _Drawn(self._records[sample.index], sample.plan, pixels, sample.reward)

    def write(self, step: int, means: dict[str, float], loggers: Sequence[Logger]) -> None:
        """The sheet of the validation at `step`: to the run folder, and to every logger that takes images."""
        drawn, self._drawn = [self._drawn[index] for index in sorted(self._drawn)], {}
        if not drawn:
            return
        path = self._path(step)
        with saving(path):
            sheet(
                path,
                f"validation at step {step}: reward {means['reward']:.3f} over {len(self._records)} prompts",
                [one.record.prompt for one in drawn],
                [one.plan for one in drawn],
                stack([one.pixels for one in drawn]),
                [one.caption for one in drawn],
            )
        for logger in loggers:
            # Lightning's name for it: the W&B logger and ours take paths; others have none.
            log_image = getattr(logger, "log_image", None)
            if log_image is not None:
                log_image(KEY, [str(path)], step=step)
