"""From logits and a uniform to a token, under a level's `Sampling`."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from kernels import Draws, sample_tokens
from src.values import Sampling


def draw(
    logits: Tensor,
    unconditional: Tensor | None,
    uniform: Tensor,
    sampling: Sampling,
    operation: Callable[..., Draws] = sample_tokens,
) -> Draws:
    """Sample from ``softmax((u + w*(c - u)) / temperature)`` by inverse CDF, truncated where `sampling` says so.

    Args:
        logits: conditional logits c, (N, V).
        unconditional: unconditional logits u, (N, V); None without guidance.
        uniform: (N,) float64 in [0, 1).
        operation: a backend's `sample_tokens`.

    The log-probs are those of the whole vocabulary, truncated or not: the distribution that training computes.
    """
    return operation(
        logits,
        uniform,
        unconditional=unconditional,
        guidance_scale=1.0 if unconditional is None else sampling.guidance_scale,
        temperature=sampling.temperature,
        top_k=sampling.top_k,
        top_p=sampling.top_p,
        logp_of="full",
        validate=False,
    )
