"""Cached decoding against one full forward through transformers' own modules."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from src.policies.base import Decoder, Policy
from src.policies.janus import JanusDecoder, JanusPolicy
from src.values import IMAGE, PLAN, TokenContext
from tests.policies.oracle import level_logps, log_softmax
from tests.policies.tiny import exact_policy, tiny_policy

PROMPTS = ("a red circle", "two blue square left of a green circle", "one triangle", "a red circle and a blue square")
PLANS = ("red", "two blue square . green circle right", "", "the the")

# name -> how the policy is made. Kinds differ in which code path decodes.
KINDS: dict[str, dict[str, Any]] = {
    "merged": {},
    "unmerged": {"merge_rollout": False},
    "full": {"lora": None},
    "full-unmerged": {"lora": None, "merge_rollout": False},
    "one-kv-head": {"kv_heads": 1},
    "no-grouping": {"kv_heads": 4},
    "partial-targets": {"lora": {"r": 2, "targets": ["q_proj", "down_proj"]}},
}


def contexts(policy: JanusPolicy, level: str) -> TokenContext:
    return policy.plan_context(PROMPTS) if level == PLAN else policy.image_context(PROMPTS, PLANS)


def some_ids(level: str, rows: int, length: int, seed: int = 5) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 24, (rows, length), generator=generator)  # 24 codes; 64 words


def stepwise_logps(decoder: Decoder, level: str, context: TokenContext, ids: Tensor) -> Tensor:
    """Log-probs (N, T, V) by start and advance, token by token."""
    steps = ids.shape[1]
    state, features = decoder.start(level, context, steps)
    collected = [features]
    for step in range(steps - 1):
        collected.append(decoder.advance(state, ids[:, step]))
    return log_softmax(decoder.head(level)(torch.stack(collected, 1)))


@pytest.mark.parametrize("level", [PLAN, IMAGE])
@pytest.mark.parametrize("kind", KINDS)
def test_cached_decoding_equals_one_full_forward(kind: str, level: str) -> None:
    policy = exact_policy(**KINDS[kind])
    context = contexts(policy, level)
    assert context.mask.sum(1).unique().numel() > 2, "the rows shall differ in length"
    ids = some_ids(level, len(context), 9)
    with torch.no_grad():
        stepwise = stepwise_logps(policy.decoder(), level, context, ids)
    torch.testing.assert_close(stepwise, level_logps(policy.janus, level, context, ids), atol=1e-10, rtol=0)


def test_the_adapter_of_these_tests_does_something() -> None:
    """Else merged and unmerged decoding would agree with the full forward for the wrong reason."""
    policy = tiny_policy()
    context, ids = contexts(policy, PLAN), some_ids(PLAN, 4, 6)
    active = level_logps(policy.janus, PLAN, context, ids)
    with policy.adapter.disable_adapter():
        base = level_logps(policy.janus, PLAN, context, ids)
    assert (active - base).abs().max() > 0.1


@pytest.mark.parametrize("level", [PLAN, IMAGE])
def test_bfloat16_decodes_unmerged_and_agrees_at_its_precision(level: str) -> None:
    policy = tiny_policy(dtype=torch.bfloat16)
    assert policy.janus.lm_head.weight.dtype == torch.bfloat16
    context = contexts(policy, level)
    ids = some_ids(level, len(context), 9)
    with torch.no_grad():
        stepwise = stepwise_logps(policy.decoder(), level, context, ids)
    full = level_logps(policy.janus, level, context, ids)
    # Two bf16 computations of one thing: measured against float32 weights both are off by about as much.
    exact = level_logps(policy.janus.float(), level, context, ids)
    noise = (full - exact).abs().mean()
    assert noise > 1e-3, "bf16 shall be what is tested here"
    assert (stepwise - exact).abs().mean() < 2 * noise


def test_bfloat16_keeps_adapter_updates_that_merging_would_round_away() -> None:
    """A tiny delta changes nothing once added to bf16 weights; applied beside them it does."""
    policy = tiny_policy(dtype=torch.bfloat16, adapter_scale=3e-4)
    context, ids = contexts(policy, PLAN), some_ids(PLAN, 4, 6)
    unmerged = policy.decoder().evaluate(PLAN, context, ids)
    with policy.reference() as reference:
        base = reference.evaluate(PLAN, context, ids)
    assert (unmerged != base).any()


@pytest.mark.parametrize("level", [PLAN, IMAGE])
@pytest.mark.parametrize("kind", ["merged", "unmerged", "full"])
def test_evaluate_equals_start_and_advance(kind: str, level: str) -> None:
    policy = exact_policy(**KINDS[kind])
    decoder, context = policy.decoder(), contexts(policy, level)
    for length in (1, 2, 9):
        ids = some_ids(level, len(context), length)
        with torch.no_grad():
            at_once = decoder.head(level)(decoder.evaluate(level, context, ids)).log_softmax(-1)
            stepwise = stepwise_logps(decoder, level, context, ids)
        assert at_once.shape[1] == length
        torch.testing.assert_close(at_once, stepwise, atol=1e-10, rtol=0)


def test_rows_of_equal_tokens_but_different_masks_are_not_confused() -> None:
    """A pad token that is attended to (the guidance branch) is another row than padding."""
    policy = exact_policy()
    pad = policy.pad_id
    ids = torch.tensor([[pad, pad, 0, 7], [pad, pad, 0, 7]])
    mask = torch.tensor([[True, True, True, True], [False, False, True, True]])
    context, tokens = TokenContext(ids, mask), some_ids(PLAN, 2, 4)
    with torch.no_grad():
        stepwise = stepwise_logps(policy.decoder(), PLAN, context, tokens)
    full = level_logps(policy.janus, PLAN, context, tokens)
    assert (full[0] - full[1]).abs().max() > 1e-2
    torch.testing.assert_close(stepwise, full, atol=1e-10, rtol=0)


@pytest.mark.parametrize("kind", ["merged", "full", "unmerged"])
def test_a_decoder_never_builds_a_graph_nor_touches_the_weights(kind: str) -> None:
    policy = tiny_policy(**KINDS[kind])
    before = {name: value.clone() for name, value in policy.state_dict().items()}
    decoder, context = policy.decoder(), contexts(policy, IMAGE)
    ids = some_ids(IMAGE, len(context), 4)
    state, first = decoder.start(IMAGE, context, 4)
    outputs = [first, decoder.advance(state, ids[:, 0]), decoder.evaluate(IMAGE, context, ids)]
    assert not any(output.requires_grad for output in outputs)
    assert all(torch.equal(before[name], value) for name, value in policy.state_dict().items())


def test_a_merged_decoder_is_the_weights_at_its_moment() -> None:
    """Merged copies do not follow the adapter; a new decoder does."""
    policy = tiny_policy()
    context, ids = contexts(policy, PLAN), some_ids(PLAN, 4, 5)
    old = policy.decoder()
    before = old.evaluate(PLAN, context, ids)
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if "lora_B" in name:
                parameter.mul_(-1.0)
    assert torch.equal(old.evaluate(PLAN, context, ids), before)
    with torch.no_grad():
        new = stepwise_logps(policy.decoder(), PLAN, context, ids)
    torch.testing.assert_close(new, level_logps(policy.janus, PLAN, context, ids), atol=1e-4, rtol=0)


def test_janus_policy_and_decoder_satisfy_the_protocols() -> None:
    policy = tiny_policy()
    assert isinstance(policy, Policy)
    assert isinstance(policy.decoder(), Decoder)
    assert isinstance(policy.decoder(), JanusDecoder)
    assert policy.image_tokens == 9


def test_painted_pixels_are_transformers_own(janus_policy: JanusPolicy) -> None:
    """NHWC in [-1, 1] there, NCHW in [0, 1] here."""
    ids = some_ids(IMAGE, 3, 9)
    with torch.no_grad():
        theirs = janus_policy.janus.decode_image_tokens(ids)
    ours = janus_policy.paint(ids)
    assert ours.dtype == torch.float32
    assert tuple(ours.shape) == (3, 3, theirs.shape[1], theirs.shape[2])
    expected = torch.stack([((theirs[..., channel] + 1) / 2).clip(0, 1) for channel in range(3)], dim=1)
    torch.testing.assert_close(ours, expected, atol=1e-6, rtol=0)


@pytest.fixture
def janus_policy() -> JanusPolicy:
    return tiny_policy()
