"""The peers do what they are named after: from the same contexts, made greedy, both give ours' tokens."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from src.benchmark.models import LENGTHS, SIZES, TINY, image_contexts, janus_config, plan_contexts, random_policy
from src.benchmark.peers import released_loop, transformers_generate
from src.benchmark.rollouts import Bench
from src.policies.janus import JanusPolicy
from src.rollout.decode import decode
from src.values import IMAGE, Sampling

COLD = 1e-4


@pytest.fixture(scope="module")
def policy() -> JanusPolicy:
    return random_policy(TINY, torch.device("cpu"), torch.float32)


def test_made_greedy_all_sample_the_same(policy: JanusPolicy, monkeypatch: pytest.MonkeyPatch) -> None:
    def likeliest(probabilities: Tensor, num_samples: int) -> Tensor:
        return probabilities.argmax(-1, keepdim=True)

    monkeypatch.setattr(torch, "multinomial", likeliest)
    context = image_contexts(policy, 4, 2, LENGTHS[TINY])
    unconditional = policy.unconditional(context)
    noise = torch.full((4, policy.image_tokens), 0.5, dtype=torch.float64)
    sampling = Sampling(temperature=COLD, guidance_scale=3.0)
    ours = decode(policy.decoder(), IMAGE, context, noise, sampling, unconditional=unconditional).ids
    assert torch.equal(released_loop(policy.janus, context, unconditional, policy.image_tokens, 3.0), ours)
    assert torch.equal(transformers_generate(policy.janus, context, 3.0), ours)


def test_contexts_are_shared_within_a_group(policy: JanusPolicy) -> None:
    lengths = LENGTHS[TINY]
    image, plan = image_contexts(policy, 6, 3, lengths), plan_contexts(policy, 6, 3, lengths)
    assert image.ids.shape == (6, lengths.prompt + lengths.plan)
    assert plan.ids.shape == (6, lengths.instruction)
    assert len({tuple(row) for row in plan.ids.tolist()}) == 2
    assert len({tuple(row) for row in image.ids.tolist()}) == 6
    assert (image.ids[:, -1] == policy.begin_of_image_id).all()
    assert (image.ids[:3, : lengths.prompt] == image.ids[0, : lengths.prompt]).all()


def test_least_bytes_of_a_step_by_hand(policy: JanusPolicy) -> None:
    """Trunk layers and image head of the checkpoint's sizes, adapters included, and the cache at half of its growth."""
    bench = Bench(TINY, policy, 1.0, 1.0, 1)
    hidden, middle, layers, r, codes = 128, 352, 3, 16, 49
    attention = 4 * hidden * hidden + 4 * r * 2 * hidden
    mlp = 3 * hidden * middle + 3 * r * (hidden + middle)
    trunk = layers * (attention + mlp + 2 * hidden)
    head = hidden * hidden + hidden + codes * hidden + codes
    cache = 2 * 8 * layers * 2 * hidden * (12 + 16 + 18)
    assert bench.step_bytes(8) == 4 * (trunk + head + cache)


@pytest.mark.parametrize(("name", "billions"), [("1b", 2.09), ("7b", 7.42)])
def test_sizes_are_the_published_ones(name: str, billions: float) -> None:
    """The parameter counts of the published checkpoints (model cards of deepseek-community/Janus-Pro-*)."""
    from transformers import JanusForConditionalGeneration

    with torch.device("meta"):
        model = JanusForConditionalGeneration(janus_config(SIZES[name]))
    assert sum(p.numel() for p in model.parameters()) / 1e9 == pytest.approx(billions, abs=0.02)
