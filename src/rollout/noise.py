"""Keyed noise: the uniform of a token is a pure function of where the token stands in the run.

The key is (run seed, stream, step, position of the prompt in the global batch, rollout, level, place).
Batch composition, microbatch, rank and backend never enter: the noise of a rollout does not change with its
neighbours nor with the number of ranks, and a resumed run draws the same. What the noise meets are the model's
probabilities, whose rounding may depend on how many rows are decoded at once: docs/DECISIONS.md says where that
changes tokens.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class RolloutKey:
    """Names one rollout of a run.

    `stream` separates uses ("train", "validation", ...); `step` is the prompt batch, `position` the prompt's
    place in the global batch, `rollout` the place in its group.
    """

    seed: int
    stream: str
    step: int
    position: int
    rollout: int


def group_keys(seed: int, stream: str, step: int, positions: Sequence[int], group_size: int) -> list[RolloutKey]:
    """Keys of all rollouts of a prompt batch, prompt-major."""
    return [RolloutKey(seed, stream, step, p, g) for p in positions for g in range(group_size)]


def uniforms(keys: Sequence[RolloutKey], level: str, length: int) -> Tensor:
    """Uniforms in [0, 1), (N, length) float64 on the CPU; row i depends on keys[i] and `level` alone.

    A longer request begins with the shorter one's numbers.
    """
    rows = torch.empty((len(keys), length), dtype=torch.float64)
    generator = torch.Generator()
    for row, key in zip(rows, keys, strict=True):
        text = f"{key.seed}|{key.stream}|{key.step}|{key.position}|{key.rollout}|{level}"
        digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
        generator.manual_seed(int.from_bytes(digest, "little") >> 1)
        row.uniform_(generator=generator)
    return rows


def rollout_key(seed: int, prompt: str, rollout: int, candidate: int = 0) -> RolloutKey:
    """The key of a picture's noise: by the prompt's words, not by its place among others.

    A picture's first candidate is the picture without best-of-N, and more candidates begin with the fewer's.
    """
    digest = hashlib.blake2b(prompt.encode(), digest_size=7).digest()
    stream = "generate" if candidate == 0 else f"generate/candidate {candidate}"
    return RolloutKey(seed, stream, 0, int.from_bytes(digest, "little"), rollout)
