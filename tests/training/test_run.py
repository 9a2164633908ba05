"""A whole run on a tiny random Janus: what stands in its folder, and that other libraries can use it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from src.values import PLAN
from tests.policies.oracle import level_logps
from tests.policies.test_decoder import some_ids
from tests.policies.tiny import tiny_janus, tiny_policy
from tests.training.runs import (
    checkpoint_weights,
    metrics_rows,
    rollout_lines,
    summary,
    train,
    write_world,
)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def run(world: Path) -> Path:
    assert train(world, world / "run") == 0
    return world / "run"


@pytest.fixture(scope="module")
def full_run(world: Path) -> Path:
    assert train(world, world / "full", model__lora="null", optim__lr=1e-3) == 0
    return world / "full"


def test_the_folder_holds_everything(run: Path) -> None:
    for name in (
        "config.yaml",
        "metrics.csv",
        "rollouts.jsonl",
        "summary.json",
        "samples_before.png",
        "samples_after.png",
        "samples/step_000000.png",
        "samples/step_000006.png",
        "test_before.jsonl",
        "test_after.jsonl",
        "checkpoints/last.ckpt",
        "checkpoints/best.safetensors",
        "adapter/adapter_config.json",
        "adapter/adapter_model.safetensors",
    ):
        assert (run / name).is_file(), name
    assert not list(run.rglob("*.partial"))


def test_the_summary_says_what_the_issue_asks_for(run: Path) -> None:
    found = summary(run)
    for key in ("reward", "all_correct"):
        assert isinstance(found[f"{key}_before"], float)
        assert isinstance(found[f"{key}_after"], float)
    assert found["steps"] == 6
    assert found["finished"] is True
    assert found["seed"] == 0
    assert found["seconds_per_step"] > 0
    assert found["seconds_total"] >= found["seconds_training"] > 0
    assert {"python", "torch", "lightning", "transformers", "peft"} <= set(found["versions"])
    assert "git_commit" in found
    assert set(found["by_kind"]) == {"triangle"}
    kind = found["by_kind"]["triangle"]
    assert kind["before"]["n"] == kind["after"]["n"] == 3
    assert kind["after"]["reward"] == pytest.approx(found["reward_after"], abs=1e-4)


def test_the_resolved_config_is_written(run: Path, world: Path) -> None:
    config = OmegaConf.load(run / "config.yaml")
    assert config.model.path == str(world / "model")
    assert config.optim.lr == 0.01
    assert config.algorithm.logp == "guided"
    assert "${" not in (run / "config.yaml").read_text()


def test_every_step_has_its_row(run: Path) -> None:
    rows = metrics_rows(run)
    assert [int(row["step"]) for row in rows] == list(range(7))
    for row in rows[1:]:
        for name in ("reward", "plan/kl", "image/kl", "groups_without_signal", "seconds", "all_correct", "lr"):
            assert row[name] != "", name
        for level in ("plan", "image"):
            assert float(row[f"{level}/mismatch_max"]) < 1e-4
            assert float(row[f"{level}/ratio"]) == pytest.approx(1.0, abs=1e-5)
    assert [int(row["step"]) for row in rows if row["validation/reward"]] == [0, 3, 6]
    assert float(rows[1]["image/kl"]) < 1e-6, "the adapter starts at no change"
    assert float(rows[6]["image/kl"]) > 1e-4, "and has moved since"


def test_rollouts_are_sampled_as_training_went(run: Path) -> None:
    lines = rollout_lines(run)
    assert [line["step"] for line in lines] == [step for step in range(1, 7) for _ in range(3)]
    assert all({"prompt", "plan", "reward", "scores", "ended"} <= set(line) for line in lines)


def test_the_adapter_is_the_best_by_validation_and_loads_with_plain_peft(run: Path, world: Path) -> None:
    from peft import PeftModel
    from safetensors.torch import load_file
    from transformers import JanusForConditionalGeneration

    rewards = {int(r["step"]): float(r["validation/reward"]) for r in metrics_rows(run) if r["validation/reward"]}
    found = summary(run)
    assert found["best_step"] == max(rewards, key=lambda step: (rewards[step], -step))
    assert found["best_validation"] == pytest.approx(max(rewards.values()))
    best = load_file(run / "checkpoints" / "best.safetensors")
    adapter = load_file(run / "adapter" / "adapter_model.safetensors")
    assert len(best) == len(adapter) == 28
    for name, value in adapter.items():
        ours = "policy.network." + name.replace(".weight", ".default.weight")
        assert torch.equal(best[ours], value)
    base = JanusForConditionalGeneration.from_pretrained(world / "model", tie_word_embeddings=False)
    theirs = PeftModel.from_pretrained(base, str(run / "adapter")).base_model.model
    ours = tiny_policy(lora={"r": 16})
    ours.janus.load_state_dict(theirs.state_dict())
    context, ids = ours.plan_context(["a red circle"]), some_ids(PLAN, 1, 5)
    with torch.no_grad():
        decoded = ours.decoder().head(PLAN)(ours.decoder().evaluate(PLAN, context, ids)).log_softmax(-1)
    torch.testing.assert_close(decoded, level_logps(theirs, PLAN, context, ids), atol=1e-4, rtol=0)


def test_a_checkpoint_holds_what_is_trained_and_no_more(run: Path, full_run: Path) -> None:
    assert all("lora_" in name for name in checkpoint_weights(run))
    assert all(
        name.startswith(("policy.network.model.language_model.", "policy.network.lm_head."))
        for name in checkpoint_weights(full_run)
    )


def test_full_finetuning_moves_the_language_model_and_nothing_else(full_run: Path) -> None:
    start = {f"policy.network.{name}": value for name, value in tiny_janus().state_dict().items()}
    trained = checkpoint_weights(full_run)
    moved = {name for name, value in trained.items() if not torch.equal(value, start[name])}
    assert moved == set(trained), "every weight of the language model gets a gradient"
    assert "policy.network.lm_head.weight" in moved
    assert "policy.network.model.language_model.embed_tokens.weight" in moved
    assert all(value.dtype == torch.float32 for value in trained.values())
    found = summary(full_run)
    assert found["finished"] is True
    assert isinstance(found["reward_after"], float)
    assert not (full_run / "adapter").exists()
    rows = metrics_rows(full_run)
    assert float(rows[1]["image/kl"]) < 1e-6
    assert float(rows[6]["image/kl"]) > 1e-6


def test_full_finetuning_leaves_vision_and_generation_side_alone(world: Path, tmp_path: Path) -> None:
    from src.cli.compose import compose
    from src.runs.folder import RunFolder
    from src.training.session import Session
    from tests.training.runs import overrides

    config = compose(overrides(world, tmp_path / "run", model__lora="null", optim__lr=1e-2, trainer__max_steps=2))
    session = Session.build(config, RunFolder(tmp_path / "run"), 0.0)
    before = {name: value.clone() for name, value in session.module.state_dict().items()}
    session.fit(None)
    after = session.module.state_dict()
    language = ("policy.network.model.language_model.", "policy.network.lm_head.")
    frozen = [name for name in before if not name.startswith(language)]
    assert any("vqmodel" in name for name in frozen)
    assert any("generation_head" in name for name in frozen)
    assert any("vision_model" in name for name in frozen)
    assert all(torch.equal(before[name], after[name]) for name in frozen)


@pytest.mark.parametrize("extra", [{"algorithm__beta": 0}, {"algorithm__logp": "conditional"}])
def test_variants_of_the_objective_run(world: Path, tmp_path: Path, extra: dict[str, Any]) -> None:
    assert train(world, tmp_path / "run", trainer__max_steps=2, **extra) == 0
    row = metrics_rows(tmp_path / "run")[2]
    assert ("image/kl" in row) == (extra.get("algorithm__beta") != 0)
    assert float(row["image/mismatch_max"]) < 1e-4


def test_a_fresh_run_refuses_a_folder_that_holds_one(
    run: Path, world: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = json.dumps(summary(run))
    assert train(world, run) == 2
    error = capsys.readouterr().err
    assert f"run.dir={run}" in error
    assert "resume=auto" in error
    assert json.dumps(summary(run)) == before


@pytest.mark.parametrize("every", [1, 2, 3])
def test_several_updates_a_rollout_are_sampled_into_the_rollouts_too(world: Path, tmp_path: Path, every: int) -> None:
    """The step then moves by two: the sample must not depend on odd or even."""
    settings = {"algorithm__updates_per_rollout": 2, "trainer__max_steps": 8, "checkpoint__rollouts_every": every}
    assert train(world, tmp_path / "run", **settings) == 0
    assert (tmp_path / "run" / "rollouts.jsonl").is_file()
    assert len({line["step"] for line in rollout_lines(tmp_path / "run")}) >= 2
