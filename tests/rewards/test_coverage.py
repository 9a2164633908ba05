"""Experts that have nothing to say about the data are told of before anything is trained."""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path

import pytest

from src.cli.compose import compose
from src.config.errors import UserError
from src.config.schema import ROOT
from src.rewards import FACTORIES
from src.rewards.base import RewardExpert
from src.rewards.coverage import check_covered, silent_experts
from src.rewards.ensemble import RewardEnsemble
from src.values import PromptRecord
from tests.rewards.toy import Brightness, NamedChannel, about

CAT, RED = about("cat"), about("red")


def test_an_expert_that_applies_to_no_prompt_is_named_with_what_it_needs() -> None:
    ensemble = RewardEnsemble([Brightness(), NamedChannel()])
    found = silent_experts(ensemble, {"training": [CAT, CAT], "test": [CAT, RED], "validation": []})
    assert found == {"named_channel": "expert 'named_channel' (part of the reward) applies to no training prompt"}
    monitor = RewardEnsemble([Brightness(), NamedChannel()], {"named_channel": 0})
    assert (
        "(only watched) applies to no training or test prompt"
        in silent_experts(monitor, {"training": [CAT], "test": [CAT]})["named_channel"]
    )


def test_without_any_expert_that_rewards_there_is_nothing_to_train_on() -> None:
    with pytest.raises(ValueError, match="no expert with a weight applies to any of the 2 training prompts"):
        check_covered(RewardEnsemble([Brightness(), NamedChannel()], {"brightness": 0}), [CAT, CAT])
    check_covered(RewardEnsemble([Brightness(), NamedChannel()], {"brightness": 0}), [CAT, RED])


def test_experts_that_pass_over_prompts_say_what_they_need() -> None:
    choosy = []
    for path in FACTORIES:
        module, name = path.rsplit(".", 1)
        expert = getattr(import_module(module), name)
        if isinstance(expert, type) and expert.applicable is not RewardExpert.applicable:
            choosy.append(name)
            assert expert.needs, f"{path}: declare `needs`"
    assert {"Detector", "ShapesJudge"} <= set(choosy)


def test_plain_prompts_without_a_scene_are_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    """The drawn world's judge knows its own wordings only; a run on others would have no reward at all."""
    from src import build

    prompts = tmp_path / "mine.txt"
    prompts.write_text("".join(f"a photograph of harbour number {i}\n" for i in range(60)))
    config = compose(["experiment=bicot_lora", f"data.path={prompts}"])
    with pytest.raises(UserError, match=r"no expert with a weight applies.*shapes needs scene\.objects"):
        build.silent_experts(build.build_rewards(config), build.build_data(config))


WATCHED = (
    "plugins=[tests]",
    "+rewards.experts.named._target_=tests.rewards.toy.NamedChannel",
    "+rewards.experts.flat._target_=tests.rewards.toy.Flat",
    "+rewards.weights.named=0",
    "+rewards.weights.flat=0",
)


def test_a_run_says_it_before_its_first_step_and_in_its_summary(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Plain prompts: the judge knows them by their wording, an expert that goes by nouns has nothing to go by."""
    from src.data.splits import read_prompt_file
    from src.shapes.known import completed
    from tests.tiny_run import train

    prompts = tmp_path / "mine.txt"
    lines = [
        record.prompt
        for record in read_prompt_file(ROOT / "src/shapes/prompts/train.jsonl")
        if completed(PromptRecord(record.prompt)).scene
    ]
    prompts.write_text("\n".join(lines[:60]))
    run = train(tmp_path / "run", f"data.path={prompts}", "trainer.max_steps=1", *WATCHED)
    said = capsys.readouterr().out
    silent = "expert 'named' (only watched) applies to no training or validation or test prompt"
    alike = "validation at step 0: expert 'flat' gave all 3 pictures the same score, 0.25"
    assert said.index(silent) < said.index(alike) < said.index("test before: ")
    assert said.count("expert 'named'") == said.count("expert 'flat'") == 1
    assert json.loads(run.summary.read_text())["reward_warnings"][:2] == [silent, alike]


def test_an_evaluation_says_it_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from src.evaluate import command as evaluate

    words = ("prompts=two green squares", "rewards=shapes", "n=2", "max_plan_tokens=8", f"out={tmp_path / 'out'}")
    monkeypatch.setattr("sys.argv", ["evaluate", *words, *WATCHED])
    assert evaluate.main() == 0
    said = capsys.readouterr().err
    silent = "expert 'named' (only watched) applies to no evaluated prompt"
    alike = "expert 'flat' gave all 2 pictures the same score, 0.25"
    assert f"warning: {silent}\n" in said
    assert f"warning: {alike}\n" in said
    assert {alike, silent} <= set(json.loads((tmp_path / "out" / "summary.json").read_text())["reward_warnings"])
