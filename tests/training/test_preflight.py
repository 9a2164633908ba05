"""What a run is told about its memory before it starts, and how its steps are cut: no GPU needed to say so."""

from __future__ import annotations

import warnings
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from src.cli.compose import compose
from src.config.errors import UserError
from src.rewards.ensemble import RewardEnsemble
from src.training.memory import GIB, MemoryEstimate, StepCut
from src.training.preflight import check, fit_to_memory, longest_contexts, step_shape
from src.values import IMAGE, PLAN, PromptRecord
from tests.policies.published import published_policy
from tests.policies.tiny import templated_tokenizer, tiny_policy
from tests.policies.toy import ToyPolicy
from tests.training.experts import Red

PROMPTS = ("a red circle", "two blue square left of a green circle", "one triangle .")
RECORDS = tuple(PromptRecord(prompt) for prompt in PROMPTS)
DATA = SimpleNamespace(train_records=RECORDS, validation_records=RECORDS[:2], test_records=RECORDS[:1])


def config_of(*overrides: str) -> Any:
    return compose(["experiment=bicot_lora", "rollout.prompts_per_step=2", *overrides])


def trainer_on(device: str, world_size: int = 1, precision: str = "32-true") -> Any:
    return SimpleNamespace(
        strategy=SimpleNamespace(root_device=torch.device(device)), world_size=world_size, precision=precision
    )


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Sets the size of the card, in GiB."""

    def of(gib: float) -> None:
        found = SimpleNamespace(total_memory=int(gib * GIB))
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: found)

    return of


def fitted(config: Any, policy: Any, trainer: Any) -> Any:
    return fit_to_memory(config, policy, DATA, RewardEnsemble([Red()]), trainer)


def test_a_cpu_is_told_nothing_and_keeps_what_is_asked(capsys: pytest.CaptureFixture[str]) -> None:
    found = fitted(config_of(), tiny_policy(), trainer_on("cpu"))
    assert found.cut == StepCut()
    assert found.figures()["total"] > 0
    assert set(found.figures()) >= {"weights", "optimiser", "rollout", "reference", "update", "evaluation"}
    assert capsys.readouterr().out == ""
    asked = config_of("optim.microbatch=4", "optim.split_levels=true", "optim.activation_checkpointing=true")
    assert fitted(asked, tiny_policy(), trainer_on("cpu")).cut == StepCut(4, True, True)


def test_a_small_model_on_a_gpu_is_not_cut(card: Any, capsys: pytest.CaptureFixture[str]) -> None:
    card(8)
    assert fitted(config_of(), tiny_policy(), trainer_on("cuda")).cut == StepCut()
    line = capsys.readouterr().out
    assert "memory: needs ~0.0 GiB" in line
    assert "the card has 8.0; a backward takes both levels of 16 of 16 rollouts" in line


def test_on_a_gpu_float32_weights_need_no_second_copy_to_decode(card: Any) -> None:
    """The policy is still on the CPU, where it would be decoded merged."""
    card(8)
    rollout = {
        merge: fitted(config_of(), tiny_policy(merge_rollout=merge), trainer_on("cuda")).estimate.phases["rollout"]
        for merge in (None, False, True)
    }
    assert rollout[None] == rollout[False] < rollout[True]


def published_7b() -> Any:
    policy = published_policy("7B")
    # Contexts are made on the policy's device, and here that holds no data.
    policy.plan_context = lambda prompts: SimpleNamespace(ids=torch.zeros(len(prompts), 100))
    policy.image_context = lambda prompts, plans: SimpleNamespace(ids=torch.zeros(len(prompts), 100))
    return policy


def test_a_7b_is_cut_to_fit_a_40_gib_card(card: Any, capsys: pytest.CaptureFixture[str]) -> None:
    card(40)
    config, policy = config_of("rollout.max_plan_tokens=256", "kernels=torch"), published_7b()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = fitted(config, policy, trainer_on("cuda"))
    assert found.cut.activation_checkpointing
    assert found.cut.split_levels
    assert found.figures()["total"] < 38
    assert "the card has 40.0; a backward takes one level of" in capsys.readouterr().out


def test_what_may_not_fit_is_a_warning_that_names_the_key(card: Any) -> None:
    card(24)
    whole = config_of("rollout.max_plan_tokens=256", "rollout.max_rows=16", "kernels=torch")
    with pytest.warns(RuntimeWarning, match=r"the rollout may need .* lower rollout\.max_rows"):
        fitted(whole, published_7b(), trainer_on("cuda"))


def test_what_cannot_fit_is_refused(card: Any) -> None:
    card(12)
    with pytest.raises(UserError, match=r"need 1\d\.\d GiB, the card has 12\.0: train adapters"):
        fitted(config_of(), published_7b(), trainer_on("cuda"))


@pytest.mark.parametrize("phase", ["rollout", "evaluation", "reference", "update"])
def test_every_phase_has_advice(phase: str) -> None:
    phases = {"rollout": 0, "evaluation": 0, "reference": 0, "update": 0} | {phase: 30 * GIB}
    with pytest.warns(
        RuntimeWarning, match=rf"the {phase} may need 31\.0 GiB, .*(rollout|evaluation|optim)\."
    ) as caught:
        check(MemoryEstimate(GIB, 0, 0, phases), 24 * GIB)
    assert len(caught) == 1


def test_another_policy_has_no_estimate(card: Any) -> None:
    card(1)
    found = fitted(config_of("optim.microbatch=4"), ToyPolicy(), trainer_on("cuda"))
    assert found.cut == StepCut(4)
    assert found.estimate is None
    assert found.figures() is None


def test_the_shape_of_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = tiny_policy()
    config = config_of("algorithm.kl=exact", "rollout.max_plan_tokens=7", "algorithm.logp=conditional")
    shape = step_shape(config, policy, DATA, RewardEnsemble([Red()]), trainer_on("cpu", 2, "bf16-mixed"))
    assert (shape.rollouts, shape.group_size, shape.processes) == (8, 8, 2)
    assert (shape.guided, shape.guided_logp, shape.reference, shape.exact_kl) == (True, False, True, True)
    assert (shape.mixed, shape.mask_per_layer, shape.fused_head) == (True, False, False)
    assert shape.evaluation_rows == 2, "no more pictures than prompts"
    assert shape.plan_tokens == 7
    longest = len(templated_tokenizer()(PROMPTS[1])["input_ids"])
    assert shape.contexts[PLAN] >= longest
    assert shape.contexts[IMAGE] >= longest + 7


def test_contexts_are_those_of_the_longest_prompt() -> None:
    policy = tiny_policy()
    found = longest_contexts(policy, list(PROMPTS), 7)
    assert found[PLAN] == policy.plan_context(PROMPTS).ids.shape[1]
    assert found[IMAGE] == policy.image_context(PROMPTS, [""] * 3).ids.shape[1] + 7
