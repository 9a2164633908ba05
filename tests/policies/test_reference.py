"""The frozen reference: adapter off for LoRA, a copy for full fine-tuning."""

from __future__ import annotations

import copy

import pytest
import torch

from src.policies.janus import JanusPolicy
from src.values import IMAGE, PLAN, Sampling, TokenLevel
from tests.policies.oracle import level_logps
from tests.policies.test_decoder import contexts, some_ids, stepwise_logps
from tests.policies.tiny import exact_policy, tiny_policy


def train_a_little(policy: JanusPolicy, steps: int = 2, lr: float = 0.05) -> None:
    """Some optimiser steps on everything that trains, through the policy's own forward."""
    optimizer = torch.optim.SGD([p for p in policy.parameters() if p.requires_grad], lr=lr)
    context = contexts(policy, PLAN)
    ids = some_ids(PLAN, len(context), 5)
    zeros = torch.zeros(ids.shape)
    level = TokenLevel(context, ids, torch.ones_like(ids, dtype=torch.bool), zeros, zeros, Sampling())
    for _ in range(steps):
        optimizer.zero_grad()
        logits = policy({PLAN: level})[PLAN].logits()
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids.flatten()).backward()
        optimizer.step()


@pytest.mark.parametrize("merge", [None, True, False])
@pytest.mark.parametrize("level", [PLAN, IMAGE])
def test_lora_reference_is_the_model_with_the_adapter_disabled(level: str, merge: bool | None) -> None:
    policy = exact_policy(merge_rollout=merge)
    context = contexts(policy, level)
    ids = some_ids(level, len(context), 9)
    with policy.adapter.disable_adapter():
        expected = level_logps(policy.janus, level, context, ids)
    with policy.reference() as reference, torch.no_grad():
        got = stepwise_logps(reference, level, context, ids)
    torch.testing.assert_close(got, expected, atol=1e-10, rtol=0)
    # Outside of the block the adapter is on again.
    active = level_logps(policy.janus, level, context, ids)
    assert (active - expected).abs().max() > 0.1


def test_bfloat16_lora_reference_is_exactly_the_modules_with_the_adapter_disabled() -> None:
    policy = tiny_policy(dtype=torch.bfloat16)
    context, ids = contexts(policy, PLAN), some_ids(PLAN, 4, 6)
    bare = tiny_policy(dtype=torch.bfloat16, adapter_scale=0.0)
    with policy.reference() as reference:
        got = reference.evaluate(PLAN, context, ids)
    assert torch.equal(got, bare.decoder().evaluate(PLAN, context, ids))


@pytest.mark.parametrize("level", [PLAN, IMAGE])
def test_full_finetuning_reference_stays_where_training_started(level: str) -> None:
    policy = exact_policy(lora=None)
    start = copy.deepcopy(policy.janus)
    context = contexts(policy, level)
    ids = some_ids(level, len(context), 9)
    expected = level_logps(start, level, context, ids)
    train_a_little(policy)
    moved = level_logps(policy.janus, level, context, ids)
    assert (moved - expected).abs().max() > 0.1, "training shall have moved the policy"
    with policy.reference() as reference, torch.no_grad():
        got = stepwise_logps(reference, level, context, ids)
    torch.testing.assert_close(got, expected, atol=1e-10, rtol=0)


def test_the_frozen_copy_is_no_part_of_the_module() -> None:
    policy = exact_policy(lora=None)
    alone = dict(policy.janus.named_parameters())
    assert len(list(policy.parameters())) == len(alone)
    assert {id(p) for p in policy.parameters()} == {id(p) for p in alone.values()}
    assert len(policy.state_dict()) == len(policy.janus.state_dict())
    assert sum(isinstance(m, type(policy.janus)) for m in policy.modules()) == 1
    (frozen,) = policy._reference
    assert not any(p.requires_grad for p in frozen.parameters())
    theirs = {p.data_ptr() for p in frozen.parameters()}
    assert all((p.data_ptr() in theirs) != p.requires_grad for p in policy.parameters()), "what is trained is its own"


def test_the_frozen_copy_moves_with_the_module() -> None:
    policy = exact_policy(lora=None)
    outer = torch.nn.ModuleDict({"policy": policy})  # as inside the LightningModule
    outer.to(torch.float64)
    (frozen,) = policy._reference
    assert {p.dtype for p in frozen.parameters()} == {torch.float64}
    context, ids = contexts(policy, PLAN), some_ids(PLAN, 4, 3)
    with policy.reference() as reference:
        assert reference.evaluate(PLAN, context, ids).dtype == torch.float64
    outer.to("meta")
    assert {p.device.type for p in frozen.parameters()} == {"meta"}


def test_what_trains() -> None:
    """LoRA: adapters of the language model only. Full: the language model with embeddings and lm_head, no more."""
    lora = exact_policy()
    names = [name for name, p in lora.named_parameters() if p.requires_grad]
    assert len(names) == 2 * 7 * 2  # A and B, seven projections, two layers
    assert all("language_model.layers" in name and "lora_" in name for name in names)

    full = exact_policy(lora=None)
    trained = {name for name, p in full.named_parameters() if p.requires_grad}
    expected = {
        name
        for name, _ in full.named_parameters()
        if name.startswith(("network.model.language_model.", "network.lm_head."))
    }
    assert trained == expected
    assert "network.model.language_model.embed_tokens.weight" in trained
    assert "network.lm_head.weight" in trained
    frozen = {name.split(".")[2] for name, p in full.named_parameters() if not p.requires_grad}
    assert {"vision_model", "vqmodel", "aligner", "generation_embeddings", "generation_aligner"} <= frozen
    assert "generation_head" in frozen
