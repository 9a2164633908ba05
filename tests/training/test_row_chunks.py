"""Passes without a graph, a few rollouts at a time: the same figures from less memory."""

from __future__ import annotations

import pytest
import torch

from src.training.token_statistics import row_chunks, score_level
from src.values import IMAGE, LEVELS, PLAN
from tests.memory_meter import AliveBytes
from tests.policies.tiny import exact_policy, tiny_policy
from tests.policies.toy import ToyPolicy
from tests.training.experts import Red
from tests.training.lightning_pieces import toy_module
from tests.training.pieces import OPERATIONS, collected, exact
from tests.training.variant_pieces import batch_of, gathered


@pytest.mark.parametrize("kind", ["lora", "full", "toy"])
@pytest.mark.parametrize("guided", [True, False], ids=["guided", "conditional"])
def test_scores_do_not_depend_on_the_chunk(kind: str, guided: bool) -> None:
    policy = exact(kind)
    levels = collected(policy, guided=guided).experience.levels
    for name in LEVELS:
        whole = score_level(OPERATIONS, policy.decoder(), name, levels[name], guided).logp
        for rows in (1, 5, 12, 50):
            parts = score_level(OPERATIONS, policy.decoder(), name, levels[name], guided, rows).logp
            torch.testing.assert_close(parts, whole, atol=1e-10, rtol=0)


@pytest.mark.parametrize("kl_in", ["loss", "reward"])
@pytest.mark.parametrize("kl", ["k3", "exact"])
def test_an_experience_does_not_depend_on_the_chunk(kl: str, kl_in: str) -> None:
    policy = exact_policy()
    whole, parts = (gathered(policy, kl=kl, kl_in=kl_in, score_rows=rows) for rows in (None, 5))
    for name in LEVELS:
        expected, got = whole.experience.levels[name], parts.experience.levels[name]
        torch.testing.assert_close(parts.experience.advantages[name], whole.experience.advantages[name])
        if kl == "exact" and kl_in == "loss":
            assert got.reference is not None
            assert expected.reference is not None
            torch.testing.assert_close(got.reference.features, expected.reference.features, atol=1e-10, rtol=0)
        else:
            torch.testing.assert_close(got.ref_logp, expected.ref_logp, atol=1e-10, rtol=0)
    if kl_in == "reward":
        torch.testing.assert_close(parts.kl_penalty, whole.kl_penalty, atol=0, rtol=1e-6)


def test_refreshed_branches_do_not_depend_on_the_chunk() -> None:
    module, batch = (
        toy_module(policy=ToyPolicy(dtype=torch.float64), expert=Red()),
        batch_of(["triangle in red", "triangle in green", "triangle in blue"]),
    )
    experience = module.collect(batch).experience
    whole = module.refreshed(experience).levels[IMAGE].unconditional_features
    module.score_rows = 5
    parts = module.refreshed(experience).levels[IMAGE].unconditional_features
    torch.testing.assert_close(parts, whole, atol=1e-10, rtol=0)


def test_chunks_are_all_rows_in_order() -> None:
    level = collected(ToyPolicy()).experience.levels[PLAN]
    assert [len(part) for part in row_chunks(level, 5)] == [5, 5, 2]
    assert torch.equal(torch.cat([part.ids for part in row_chunks(level, 5)]), level.ids)
    assert list(row_chunks(level, None)) == [level]


def test_a_fourth_of_the_rows_needs_a_fourth_of_the_memory() -> None:
    policy = tiny_policy(layers=4)
    level, decoder = collected(policy).experience.levels[IMAGE], policy.decoder()

    score_level(OPERATIONS, decoder, IMAGE, level, True)  # tables that stay are there from now on

    def peak(rows: int | None) -> int:
        with AliveBytes() as alive:
            score_level(OPERATIONS, decoder, IMAGE, level, True, rows)
        return alive.peak

    assert peak(3) < 0.35 * peak(None)
