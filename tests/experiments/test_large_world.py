"""The study in the larger world: what it makes first, and that its runs are those of the experiment."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from experiments.large_world.study import STUDY, make_warm_start
from experiments.runner import settings
from src.shapes.model import build_config
from src.shapes.pretrain import build_parser
from src.shapes.pretrain import main as pretrain
from src.shapes.recipes import RECIPES
from src.shapes.splits import write_splits
from src.shapes.tokens import build_tokenizer
from src.shapes.worlds import LARGE
from tests.conftest import ROOT

TOY = [
    *["--hidden", "64", "--layers", "1", "--head-width", "32", "--decoder-steps", "2", "--encoder-steps", "2"],
    *["--steps", "2", "--plan-batch", "4", "--picture-batch", "2", "--crispness-drawings", "4", "--eval-prompts", "4"],
]


def test_every_arm_is_of_the_larger_world_and_no_two_are_alike() -> None:
    runs = [settings(arm, 0, STUDY.steps) for arm in STUDY.arms]
    assert all("experiment=large_world" in run and "experiment=bicot_lora" not in run for run in runs)
    assert len({tuple(run) for run in runs}) == len(runs) == 7
    assert {run[-2] for run in runs} == {"trainer.max_steps=100"}


def test_without_a_card_it_says_what_to_do_and_keeps_what_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[list[str]] = []
    monkeypatch.setattr(subprocess, "run", lambda command, **_: calls.append(command))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match=r"no card to make its 30 M parameters on; experiments/large_world/README.md"):
        make_warm_start(tmp_path)
    prompts = ["-m", "src.shapes.splits", "--world", "large", "--out", str(tmp_path / "prompts"), "--overwrite"]
    assert [call[1:] for call in calls] == [prompts]
    (tmp_path / "checkpoint").mkdir()
    (tmp_path / "checkpoint" / "RECIPE.json").write_text("{}")
    (tmp_path / "prompts").mkdir()
    (tmp_path / "prompts" / "test.jsonl").write_text("")
    make_warm_start(tmp_path)
    assert len(calls) == 1


def test_on_a_card_the_warm_start_is_made_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[list[str]] = []
    monkeypatch.setattr(subprocess, "run", lambda command, **_: calls.append(command))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    make_warm_start(tmp_path)
    options = build_parser("large").parse_args(calls[1][3:])
    assert (options.world, options.device, options.out) == ("large", "cuda", tmp_path / "checkpoint")
    size = RECIPES["large"].size
    assert (options.hidden, options.layers, options.lr) == (size.hidden, size.layers, RECIPES["large"].warm_start.lr)


def test_the_larger_model_is_an_ordinary_janus_of_about_thirty_million_parameters() -> None:
    from transformers import JanusForConditionalGeneration

    config = build_config(build_tokenizer(LARGE), LARGE, RECIPES["large"].size)
    with torch.device("meta"):
        model = JanusForConditionalGeneration(config)
    assert sum(parameter.numel() for parameter in model.parameters()) == pytest.approx(30e6, rel=0.05)
    assert model.config.vq_config.num_patches**2 == 144


@pytest.mark.slow
def test_a_toy_of_the_larger_world_is_made_and_trained(tmp_path: Path) -> None:
    pretrain(["--world", "large", "--out", str(tmp_path / "checkpoint"), *TOY])
    report = json.loads((tmp_path / "checkpoint" / "RECIPE.json").read_text("utf-8"))
    assert report["options"]["world"] == "large"
    assert report["test"]["prompts"] == 4
    write_splits(tmp_path / "prompts", LARGE)
    overrides = [
        *["experiment=large_world", f"model.path={tmp_path / 'checkpoint'}", f"data.path={tmp_path / 'prompts'}"],
        *[f"run.dir={tmp_path / 'run'}", "logger=csv", "trainer.max_steps=1", "trainer.accelerator=cpu"],
        *["evaluation.test_prompts=4", "evaluation.validation_prompts=4"],
        *["rollout.prompts_per_step=2", "rollout.group_size=2"],
    ]
    done = subprocess.run([sys.executable, "-m", "src.train", *overrides], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["finished"]
    rows = [json.loads(line) for line in (tmp_path / "run" / "test_after.jsonl").read_text().splitlines()]
    assert len(rows) == 4
    assert all("all_correct" in row["details"] for row in rows)
