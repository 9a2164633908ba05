"""A run folder of November 2026, made before modules moved to other rooms: it resumes, and what it trained loads.

`made_2026_11` was written by ``python -m src.train`` with SETTINGS at commit 4720266, and its paths replaced by ROOT.
"""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from src.train import COMMAND, cli
from tests.conftest import ROOT

MADE = Path(__file__).parent / "made_2026_11"
SETTINGS = (
    "experiment=bicot_lora",
    "model.lora.r=1",
    "rollout.group_size=2",
    "rollout.prompts_per_step=2",
    "evaluation.validation_prompts=4",
    "evaluation.test_prompts=4",
    "evaluation.every=2",
    "checkpoint.every=2",
    "logger=csv",
    "trainer.accelerator=cpu",
    "trainer.devices=1",
    "trainer.progress_bar=false",
)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The folder, as if it had been made on this machine."""
    folder = tmp_path / "run"
    shutil.copytree(MADE, folder)
    for name in ("config.yaml", "adapter/adapter_config.json"):
        file = folder / name
        file.write_text(file.read_text().replace("ROOT/run", str(folder)).replace("ROOT", str(ROOT)))
    return folder


def test_it_resumes(run: Path) -> None:
    before = (run / "metrics.csv").read_text().splitlines()
    assert cli.run(COMMAND, [*SETTINGS, f"resume={run}", "trainer.max_steps=6"]) == 0
    with (run / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    trained = [int(row["step"]) for row in rows if row.get("seconds")]
    assert trained[-2:] == [5, 6]
    kept = (run / "metrics.csv").read_text().splitlines()
    # But for the last one, which also held the figures on the test prompts: those are measured again at the new end.
    assert kept[: len(before) - 1] == before[:-1], "the steps of before stay as they were"


def test_what_it_trained_paints(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from src.generate.command import main

    out = tmp_path / "out"
    words = ["prompts=two green squares", f"run={run}", "n=1", f"out={out}", "progress_bar=false"]
    monkeypatch.setattr("sys.argv", ["generate", *words])
    assert main() == 0
    assert (out / "images" / "0000_00.png").is_file()


def test_its_checkpoint_holds_what_its_best_weights_hold(run: Path) -> None:
    """The fixture itself: weights by the names that today's policy has, and no others."""
    state = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    best = load_file(str(run / "checkpoints" / "best.safetensors"))
    assert state.keys() == best.keys()
