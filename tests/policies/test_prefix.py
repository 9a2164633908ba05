"""Contexts that begin alike are read once, and nobody sees it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from src.policies.base import EngineSettings
from src.policies.contexts import left_padded, unconditional_context
from src.policies.engine.llama import LlamaTrunk
from src.policies.engine.prefix import share
from src.values import IMAGE, PLAN, TokenContext
from tests.policies.oracle import level_logps
from tests.policies.test_decoder import PROMPTS, contexts, some_ids, stepwise_logps
from tests.policies.tiny import exact_policy

Rows = list[list[int]]


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """(rows, tokens a row) of every pass over whole sequences through a trunk."""
    passes: list[tuple[int, int]] = []
    original = LlamaTrunk._run

    def counted(self: LlamaTrunk, x: torch.Tensor, *rest: Any) -> torch.Tensor:
        passes.append((x.shape[0], x.shape[1]))
        return original(self, x, *rest)

    monkeypatch.setattr(LlamaTrunk, "_run", counted)
    return passes


def unshared(policy: Any) -> Any:
    policy.engine = EngineSettings(shared_prefix=False)
    return policy


def test_the_prompt_of_a_group_is_read_once(read: list[tuple[int, int]]) -> None:
    policy = exact_policy()
    context = policy.plan_context([PROMPTS[i] for i in (0, 1, 0, 0, 1)])
    ids = some_ids(PLAN, 5, 6)
    stepwise = stepwise_logps(policy.decoder(), PLAN, context, ids)
    assert read == [(2, context.ids.shape[1])], "two different prompts, two rows"
    torch.testing.assert_close(stepwise, level_logps(policy.janus, PLAN, context, ids), atol=1e-10, rtol=0)
    read.clear()
    stepwise_logps(unshared(policy).decoder(), PLAN, context, ids)
    assert read == [(5, context.ids.shape[1])]


@pytest.mark.parametrize("merge", [None, False])
def test_the_guidance_prefix_is_read_once_for_all_lengths(read: list[tuple[int, int]], merge: bool | None) -> None:
    policy = exact_policy(merge_rollout=merge)
    context = policy.unconditional(contexts(policy, IMAGE))
    lengths = context.mask.sum(1)
    assert lengths.unique().numel() == len(context) == 4
    ids = some_ids(IMAGE, 4, 9)
    shared = stepwise_logps(policy.decoder(), IMAGE, context, ids)
    at_once = policy.decoder().evaluate(IMAGE, context, ids)
    width = context.ids.shape[1]
    assert read[:2] == [(1, width), (3, 1)], "the longest row, and begin-of-image of the three others"
    assert read[2:4] == [(1, width), (3, 1)]
    assert read[4:] == [(4, 8)], "the tokens themselves"
    apart = stepwise_logps(unshared(policy).decoder(), IMAGE, context, ids)
    torch.testing.assert_close(shared, apart, atol=1e-10, rtol=0)
    torch.testing.assert_close(shared, level_logps(policy.janus, IMAGE, context, ids), atol=1e-10, rtol=0)
    torch.testing.assert_close(at_once, policy.decoder().evaluate(IMAGE, context, ids), atol=1e-10, rtol=0)


@pytest.mark.parametrize("rows", [[0], [2], [3, 1], [2, 2, 0]])
def test_the_guidance_prefix_does_not_depend_on_neighbours(rows: list[int]) -> None:
    """Alone a row is read in full, among longer ones as a guest: the same numbers."""
    policy = exact_policy()
    context, ids = policy.unconditional(contexts(policy, IMAGE)), some_ids(IMAGE, 4, 9)
    whole = stepwise_logps(policy.decoder(), IMAGE, context, ids)
    index = torch.tensor(rows)
    part = stepwise_logps(policy.decoder(), IMAGE, context.rows(index), ids[index])
    torch.testing.assert_close(part, whole[index], atol=1e-10, rtol=0)


def test_a_level_and_its_guidance_branch_in_one_read(read: list[tuple[int, int]]) -> None:
    policy = exact_policy()
    context = contexts(policy, IMAGE)
    branch = unconditional_context(context, policy.pad_id)
    both = TokenContext(torch.cat([context.ids, branch.ids]), torch.cat([context.mask, branch.mask]))
    policy.decoder().start(IMAGE, both, 3)
    assert read == [(4 + 1, context.ids.shape[1]), (3, 1)]


@given(
    st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=5), min_size=1, max_size=7),
)
def test_what_is_shared_is_really_the_same(rows: Rows) -> None:
    context = left_padded(rows, pad_id=1)  # a token that rows also really have
    found = share(context.ids, context.mask)
    distinct = [ids[mask].tolist() for ids, mask in zip(found.ids, found.mask, strict=True)]
    assert [distinct[i] for i in found.inverse.tolist()] == rows
    assert len({tuple(row) for row in distinct}) == len(distinct)
    hosts, guests = range(found.hosts), range(found.hosts, len(distinct))
    for guest, host in zip(guests, found.host_of.tolist(), strict=True):
        body, long = distinct[guest][:-1], distinct[host]
        assert host in hosts
        assert long[: len(body)] == body
        assert len(long) > len(distinct[guest])
    for host in hosts:  # nobody is read in full who need not be
        row = distinct[host]
        assert not any(len(other) > len(row) and other[: len(row) - 1] == row[:-1] for other in distinct)


def test_without_sharing_every_row_is_read() -> None:
    context = left_padded([[3, 4], [3, 4], [3, 5, 6]], pad_id=0)
    found = share(context.ids, context.mask, enabled=False)
    assert found.hosts == len(found.ids) == 3
    assert found.inverse.tolist() == [0, 1, 2]
    assert not len(found.host_of)
