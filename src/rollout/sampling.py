"""From logits and a uniform to a token, under a level's `Sampling`."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from kernels import Draws, sample_tokens
from src.values import Sampling


def draw(
    logits: Tensor,
    conditional: Tensor | None,
    uniform: Tensor,
    sampling: Sampling,
    operation: Callable[..., Draws] = sample_tokens,
) -> Draws:
    """Sample from ``softmax(logits / temperature)`` by inverse CDF, truncated where `sampling` says so.

    Args:
        logits: (N, V), under guidance the guided ones: the head's of mixed features, as in training.
        conditional: logits (N, V) of the conditional branch, for its log-probs; None without guidance.
        uniform: (N,) float64 in [0, 1).
        operation: a backend's `sample_tokens`.

    The log-probs are those of the whole vocabulary, truncated or not: the distribution that training computes.
    """
    # One launch for both log-probs: at a scale of 0 nothing is mixed, the second logits are what is drawn from.
    return operation(
        logits if conditional is None else conditional,
        uniform,
        unconditional=None if conditional is None else logits,
        guidance_scale=1.0 if conditional is None else 0.0,
        temperature=sampling.temperature,
        top_k=sampling.top_k,
        top_p=sampling.top_p,
        logp_of="full",
        validate=False,
    )
