"""The training stream: every batch a pure function of its number, ranks disjoint, epochs complete."""

from __future__ import annotations

from collections import Counter
from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from src.data.stream import PromptStream, epoch_permutation
from src.values import PromptBatch, PromptRecord, as_records


def records(count: int) -> tuple[PromptRecord, ...]:
    return as_records([f"prompt {i}" for i in range(count)])


def prompts(batch: PromptBatch) -> list[str]:
    return [record.prompt for record in batch.records]


@given(size=st.integers(1, 40), seed=st.integers(0, 5), epoch=st.integers(0, 5))
def test_an_epoch_holds_every_prompt_once(size: int, seed: int, epoch: int) -> None:
    assert sorted(epoch_permutation(size, seed, epoch)) == list(range(size))


def test_epochs_and_seeds_differ() -> None:
    orders = {epoch_permutation(50, seed, epoch) for seed in range(4) for epoch in range(4)}
    assert len(orders) == 16


def test_the_order_never_changes_between_versions() -> None:
    """A run that is continued with another Python or torch must see the same prompts.

    Expected by coreutils: ``printf 0/0/3 | sha256sum`` for each index, sorted.
    """
    assert epoch_permutation(8, seed=0, epoch=0) == (4, 2, 6, 0, 7, 5, 1, 3)
    assert epoch_permutation(8, seed=1, epoch=2) == (2, 3, 5, 0, 7, 4, 6, 1)


@given(size=st.integers(1, 12), per_rank=st.integers(1, 7), world=st.integers(1, 4), seed=st.integers(0, 3))
def test_all_ranks_together_walk_through_the_epochs(size: int, per_rank: int, world: int, seed: int) -> None:
    """Batches straddle epochs, may be larger than one, and hold each epoch's order without a gap."""
    total = per_rank * world
    streams = [PromptStream(records(size), total, seed, rank, world) for rank in range(world)]
    seen: list[str] = []
    for step in range(6):
        parts = [stream.batch(step) for stream in streams]
        assert [position for part in parts for position in part.positions] == list(range(total))
        assert all(part.step == step for part in parts)
        seen += [prompt for part in parts for prompt in prompts(part)]
    expected = [f"prompt {i}" for epoch in range(6 * total // size + 1) for i in epoch_permutation(size, seed, epoch)]
    assert seen == expected[: len(seen)]


@given(world=st.sampled_from([1, 2, 3, 6]), step=st.integers(0, 20))
def test_a_position_holds_the_same_prompt_on_any_number_of_ranks(world: int, step: int) -> None:
    alone = prompts(PromptStream(records(10), 6, 3).batch(step))
    shared = [p for rank in range(world) for p in prompts(PromptStream(records(10), 6, 3, rank, world).batch(step))]
    assert shared == alone


def test_every_prompt_is_seen_equally_often() -> None:
    stream = PromptStream(records(6), 4, seed=9)
    counts = Counter(prompt for batch in islice(stream, 9) for prompt in prompts(batch))
    assert counts == {f"prompt {i}": 6 for i in range(6)}


def test_iterating_starts_where_it_is_told_and_starts_anew_each_time() -> None:
    stream = PromptStream(records(5), 2, seed=1)
    whole = list(islice(stream, 8))
    stream.start_step = 5
    assert list(islice(stream, 3)) == whole[5:8]
    assert list(islice(stream, 3)) == whole[5:8]


def test_it_has_no_length() -> None:
    assert not hasattr(PromptStream(records(5), 2), "__len__")


@pytest.mark.parametrize(("per_step", "world"), [(3, 2), (0, 1), (1, 2)])
def test_prompts_that_cannot_be_shared_out_name_the_key(per_step: int, world: int) -> None:
    with pytest.raises(
        ValueError, match=rf"rollout\.prompts_per_step={per_step}.*multiple of the number of ranks, {world}"
    ):
        PromptStream(records(5), per_step, world_size=world)


def test_wrong_ranks_steps_and_empty_data_are_refused() -> None:
    with pytest.raises(ValueError, match="rank 2 of 2"):
        PromptStream(records(5), 2, rank=2, world_size=2)
    with pytest.raises(ValueError, match="no records"):
        PromptStream((), 2)
    with pytest.raises(ValueError, match="step -1"):
        PromptStream(records(5), 2).batch(-1)
