"""The sizes an estimate of memory starts from, against counts by hand and the published models."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from src.policies.sizes import model_sizes
from src.values import IMAGE, PLAN
from tests.policies.published import published_policy
from tests.policies.tiny import tiny_policy


def test_a_tiny_policy_by_hand() -> None:
    policy = tiny_policy(lora={"r": 3, "targets": ["q_proj", "down_proj"]}, layers=3)
    sizes = model_sizes(policy)
    assert (sizes.hidden, sizes.layers, sizes.heads, sizes.kv_heads, sizes.head_dim) == (32, 3, 4, 2, 8)
    assert sizes.intermediate == 64
    assert sizes.vocabularies == {PLAN: 64, IMAGE: 24}
    assert sizes.features[PLAN] == 32
    assert sizes.image_tokens == 9
    # q, o: 32 x 32; k, v: 16 x 32; three of 64 x 32.
    assert sizes.projections == 3 * (2 * 32 * 32 + 2 * 16 * 32 + 3 * 64 * 32)
    assert sizes.lora == {"q_proj": 3, "down_proj": 3}
    assert sizes.trained == 3 * 3 * (32 + 32 + 64 + 32)
    assert sizes.trained_bytes == 4 * sizes.trained
    assert sizes.merged
    # Three stages, the picture 3 * 4 pixels wide.
    assert (sizes.picture_side, sizes.picture_channels) == (12, 32)
    assert policy.paint(torch.zeros(1, 9, dtype=torch.int64)).shape[-1] == sizes.picture_side


def test_full_fine_tuning_trains_the_language_model() -> None:
    policy = tiny_policy(lora=None)
    sizes = model_sizes(policy)
    assert sizes.lora == {}
    assert sizes.weight_bytes == sum(4 * p.numel() for p in policy.parameters()) + buffers(policy)
    trained = [*policy.janus.model.language_model.parameters(), *policy.janus.lm_head.parameters()]
    assert sizes.trained == sum(p.numel() for p in trained)


def buffers(policy: Any) -> int:
    return sum(buffer.numel() * buffer.element_size() for buffer in policy.buffers())


def test_bf16_is_decoded_unmerged_unless_told_otherwise() -> None:
    assert not model_sizes(tiny_policy(dtype=torch.bfloat16)).merged
    assert model_sizes(tiny_policy(dtype=torch.bfloat16, merge_rollout=True)).merged
    assert not model_sizes(tiny_policy(merge_rollout=False)).merged


def test_float32_is_decoded_merged_on_a_cpu_alone() -> None:
    """Sizes are taken before the policy is moved: the estimate for a GPU must not count a copy that is not made."""
    gpu = torch.device("cuda")
    assert model_sizes(tiny_policy()).merged
    assert not model_sizes(tiny_policy(), gpu).merged
    assert model_sizes(tiny_policy(merge_rollout=True), gpu).merged


@pytest.mark.parametrize(("size", "billions", "rank16"), [("1B", 2.09, 15_138_816), ("7B", 7.42, 37_478_400)])
def test_the_published_sizes(size: str, billions: float, rank16: int) -> None:
    """Parameters as on the model cards; an adapter of rank r on a linear of a x b has r (a + b)."""
    sizes = model_sizes(published_policy(size))
    assert sizes.weight_bytes / 2e9 == pytest.approx(billions, rel=0.02)
    hidden, inner = sizes.hidden, sizes.intermediate
    assert sizes.trained == sizes.layers * 16 * (4 * 2 * hidden + 3 * (hidden + inner)) == rank16
    assert (sizes.picture_side, sizes.image_tokens) == (384, 576)
