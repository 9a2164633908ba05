"""Sampler and training mix guidance at one place: from equal features, in bf16, they take equal log-probs.

The features here come out of a table, so that nothing but mixing, head and softmax can differ. They and the head's
weights have so few bits that every product and every sum of the head is exact in float32, in whatever order: the
logits of both are then the same bf16 numbers, and log-probs differ by the rounding of float32 sums alone.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from kernels import Objective, operations
from src.rollout.decode import decode
from src.training.token_statistics import head_arguments, level_statistics
from src.values import IMAGE, LevelOutput, LinearHead, Sampling, TokenContext, TokenLevel

ROWS, TOKENS, WIDTH, CODES = 6, 12, 16, 40
SCALES = [5.0, 3.0, 1.5, 0.5, 0.0]
# Logits are below 2^7, so log-probs are below 2^8: what is kept of them in float32 is off by 2^-24 of that, once in the
# sampler and once in training, whose float32 sum of CODES terms adds as many roundings. (A bf16 logit has units of up
# to 2^-1.)
ROUNDING = (2 * 2**8 + CODES) * 2.0**-24


class TableDecoder:
    """Protocol `Decoder`: features (2N, T, F) bf16 of both branches out of a table, whatever was sampled."""

    def __init__(self, table: Tensor, head: LinearHead) -> None:
        self.table = table
        self._head = head

    def start(self, level: str, context: TokenContext, steps: int) -> tuple[list[int], Tensor]:
        return [0], self.table[: len(context), 0]

    def advance(self, state: list[int], ids: Tensor) -> Tensor:
        state[0] += 1
        return self.table[: len(ids), state[0]]

    def evaluate(self, level: str, context: TokenContext, ids: Tensor) -> Tensor:
        return self.table[: len(ids)]

    def head(self, level: str) -> LinearHead:
        return self._head


def sampled(scale: float, seed: int = 0) -> tuple[TableDecoder, TokenLevel]:
    """A decoder and an image level sampled from it at `scale`.

    Features are multiples of 2^-5 up to 37/32, weights of 1/4 up to 3/4. Features mixed by these scales are multiples
    of 2^-6 below 2^4, before and after rounding to bf16; so a sum of 16 products is a multiple of 2^-8 below 2^8.
    """
    generator = torch.Generator().manual_seed(seed)

    def drawn(limit: int, unit: float, *shape: int) -> Tensor:
        return (torch.randint(-limit, limit + 1, shape, generator=generator) * unit).bfloat16()

    table = drawn(37, 2.0**-5, 2 * ROWS, TOKENS, WIDTH)
    decoder = TableDecoder(table, LinearHead(drawn(3, 0.25, CODES, WIDTH)))
    context = TokenContext(torch.zeros(ROWS, 3, dtype=torch.int64), torch.ones(ROWS, 3, dtype=torch.bool))
    noise = torch.rand(ROWS, TOKENS, dtype=torch.float64, generator=generator)
    return decoder, decode(decoder, IMAGE, context, noise, Sampling(1.0, scale), context)


def trained(decoder: TableDecoder, level: TokenLevel, guided: bool, one_pass: bool) -> Tensor:
    """Training's log-probs (N, T) of the level from the same features."""
    ops, output = operations("torch", "cpu"), LevelOutput(decoder.table[:ROWS], decoder.head(IMAGE))
    if not one_pass:
        return level_statistics(ops, output, level, guided).logp
    arguments: dict[str, Any] = head_arguments(output, level, guided)
    made = ops.one_pass_head(
        **arguments,
        objective=Objective("reinforce", kl=None),
        advantages=torch.ones(ROWS),
        token_weights=torch.ones(ROWS, TOKENS),
        normaliser=1.0,
    )
    return made.statistics.logp


@pytest.mark.parametrize("one_pass", [False, True], ids=["by autograd", "one pass"])
@pytest.mark.parametrize("scale", SCALES)
def test_guided_log_probs_are_trainings_from_the_same_features(scale: float, one_pass: bool) -> None:
    for seed in range(4):
        decoder, level = sampled(scale, seed)
        found = trained(decoder, level, guided=True, one_pass=one_pass)
        assert (found - level.rollout_logp).abs().max() < ROUNDING
        assert (level.rollout_logp - level.conditional_logp).abs().max() > 0.1, "guidance shall matter here"


@pytest.mark.parametrize("scale", SCALES)
def test_conditional_log_probs_are_trainings_without_guidance(scale: float) -> None:
    decoder, level = sampled(scale)
    found = trained(decoder, level, guided=False, one_pass=False)
    assert (found - level.conditional_logp).abs().max() < ROUNDING


@pytest.mark.parametrize("scale", [5.0, 3.0])
def test_mixed_logits_would_be_others(scale: float) -> None:
    """So that the tests above can fail: with equal features, mixing the logits gives log-probs far from these."""
    decoder, level = sampled(scale)
    head, (own, free) = decoder.head(IMAGE), decoder.table.chunk(2)
    mixed = head(free).double() + scale * (head(own).double() - head(free).double())
    other = mixed.log_softmax(-1).gather(-1, level.ids[..., None]).squeeze(-1)
    assert (other - level.rollout_logp).abs().max() > 100 * ROUNDING
