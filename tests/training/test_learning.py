"""Variants learn: a short run on the embedded default raises the reward on prompts that were held out."""

from __future__ import annotations

from pathlib import Path

import pytest

from src.cli import command as cli
from src.train import COMMAND
from tests.training.runs import metrics_rows

STEPS = 40
# Four pictures of each of the 128 validation prompts, the same noise before and after: the standard error of the
# difference is about 0.012.
SETTINGS = (
    f"trainer.max_steps={STEPS}",
    f"evaluation.every={STEPS}",
    "evaluation.samples_per_prompt=4",
    "evaluation.test_prompts=1",
    "evaluation.picture_prompts=1",
    "optim.schedule=constant",
    "trainer.progress_bar=false",
    "trainer.accelerator=cpu",
    "trainer.devices=1",
    "logger=csv",
)
GAIN = 0.04


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bicot_lora", "dr_grpo", "dapo", "gspo", "rloo"])
def test_the_validation_reward_rises(name: str, tmp_path: Path) -> None:
    assert cli.run(COMMAND, [f"experiment={name}", f"run.dir={tmp_path / 'run'}", *SETTINGS]) == 0
    reward = {int(row["step"]): row.get("validation/reward") for row in metrics_rows(tmp_path / "run")}
    before, after = float(reward[0] or "nan"), float(reward[STEPS] or "nan")
    assert after > before + GAIN, f"{name}: {before:.3f} -> {after:.3f}"
