"""The cache: the same addresses again and again, grown when it must be, and no trace of what was in it before."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from src.policies.base import EngineSettings
from src.policies.engine import cache as cache_module
from src.policies.engine.cache import CacheMemory, CacheShape, rows_within
from src.rollout.decode import decode
from src.values import IMAGE, PLAN, Sampling
from tests.policies.oracle import level_logps
from tests.policies.test_decoder import contexts, some_ids, stepwise_logps
from tests.policies.tiny import exact_policy, tiny_policy

SHAPE = CacheShape(layers=2, heads=3, head_dim=4, dtype=torch.float32, device=torch.device("cpu"))


def addresses(state: Any) -> tuple[int, ...]:
    return tuple(tensor.data_ptr() for tensor in (state.keys, state.values, state.first, state.length))


def test_equal_demands_get_the_same_addresses() -> None:
    memory = CacheMemory()
    first = memory.open(IMAGE, SHAPE, rows=5, places=100)
    assert first.keys.shape == (2, 5, 3, 128, 4), "places in multiples of 64"
    assert addresses(memory.open(IMAGE, SHAPE, rows=5, places=70)) == addresses(first)
    plan = memory.open(PLAN, SHAPE, rows=2, places=10)
    assert plan.keys.shape == (2, 2, 3, 64, 4)
    assert addresses(memory.open(IMAGE, SHAPE, rows=5, places=100)) == addresses(first)
    assert addresses(memory.open(PLAN, SHAPE, rows=2, places=1)) == addresses(plan)
    assert memory.moves == 1
    assert memory.turn == 5


def test_it_grows_for_more_and_says_so() -> None:
    memory = CacheMemory()
    memory.open(IMAGE, SHAPE, rows=5, places=64)
    bytes_before = memory.bytes
    assert bytes_before == SHAPE.bytes(5, 64) == 2 * 4 * (2 * 5 * 3 * 64 * 4)
    memory.open(IMAGE, SHAPE, rows=5, places=65)
    assert memory.bytes == 2 * bytes_before
    assert memory.moves == 2
    # The level keeps its places: shorter contexts find the shape that was captured.
    assert memory.open(IMAGE, SHAPE, rows=5, places=3).keys.shape[3] == 128
    assert memory.open(PLAN, SHAPE, rows=10, places=64).keys.shape[1] == 10
    assert memory.moves == 2
    # The memory has room for more of them, but then rows stand elsewhere in it.
    assert memory.open(PLAN, SHAPE, rows=4, places=65).keys.shape[3] == 128
    assert memory.moves == 3
    assert memory.open(PLAN, SHAPE, rows=4, places=65).keys.shape[3] == 128
    assert memory.moves == 3


def test_another_dtype_is_another_memory_and_released_memory_is_gone() -> None:
    memory = CacheMemory()
    memory.open(IMAGE, SHAPE, rows=5, places=64)
    half = CacheShape(2, 3, 4, torch.bfloat16, torch.device("cpu"))
    assert memory.open(IMAGE, half, rows=5, places=64).keys.dtype == torch.bfloat16
    assert memory.moves == 2
    memory.release()
    assert memory.bytes == 0
    assert memory.moves == 3


def test_rows_that_fit_by_hand() -> None:
    """Janus-Pro-7B: 30 layers, 32 heads of 128, bf16: 480 KiB a token, 480 MiB for 1,000 places rounded to 1,024."""
    janus = CacheShape(30, 32, 128, torch.bfloat16, torch.device("cuda"))
    assert janus.bytes(1, 1) == 480 * 1024
    assert rows_within(48 * 1024**3, janus, 1000) == 102
    assert rows_within(1, janus, 1000) == 1, "never none"
    assert CacheMemory().rows_that_fit(PLAN, SHAPE, 1000) is None


def test_what_fits_is_measured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every step splits its rollouts alike, whatever is free just then; released memory is measured anew."""
    free = [1000 * SHAPE.bytes(1, 64)]
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free[0], 0))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 20 * SHAPE.bytes(1, 64))
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 0)
    on_gpu = CacheShape(2, 3, 4, torch.float32, torch.device("cuda"))
    memory = CacheMemory()
    assert memory.rows_that_fit(PLAN, on_gpu, 64) == cache_module.SHARE_OF_FREE_MEMORY * 1020
    free[0] = 0
    assert memory.rows_that_fit(PLAN, on_gpu, 128) == cache_module.SHARE_OF_FREE_MEMORY * 510
    memory.release()
    assert memory.rows_that_fit(PLAN, on_gpu, 64) == cache_module.SHARE_OF_FREE_MEMORY * 20


def test_rows_count_with_the_places_their_level_has(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorter contexts get as many places as longer ones did before: more rows of them would outgrow the budget."""
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (200 * SHAPE.bytes(1, 64), 0))
    for name in ("memory_reserved", "memory_allocated"):
        monkeypatch.setattr(torch.cuda, name, lambda device: 0)
    on_gpu = CacheShape(2, 3, 4, torch.float32, torch.device("cuda"))
    memory = CacheMemory()
    assert memory.rows_that_fit(IMAGE, on_gpu, 64) == 100
    memory.open(IMAGE, SHAPE, rows=1, places=200)
    assert memory.rows_that_fit(IMAGE, on_gpu, 64) == 25
    assert memory.rows_that_fit(PLAN, on_gpu, 64) == 100, "a level of its own"


@pytest.mark.parametrize("filled_attention", [True, False])
@pytest.mark.parametrize("kind", [{}, {"merge_rollout": False}, {"dtype": torch.bfloat16}])
def test_reuse_leaves_no_trace_of_earlier_rollouts(kind: dict[str, Any], filled_attention: bool) -> None:
    """NaN everywhere in the memory between two rollouts: not one bit of the second changes."""
    policy = tiny_policy(**kind)
    policy.engine = EngineSettings(filled_attention=filled_attention)
    context, ids = contexts(policy, IMAGE), some_ids(IMAGE, 4, 9)
    clean = stepwise_logps(policy.decoder(), IMAGE, context, ids)
    memory = policy.decoder()._memory
    memory._keys.fill_(float("nan"))
    memory._values.fill_(float("nan"))
    address = memory._keys.data_ptr()
    assert torch.equal(stepwise_logps(policy.decoder(), IMAGE, context, ids), clean)
    assert memory._keys.data_ptr() == address
    assert bool(memory._keys.isnan().any()) == filled_attention, "what is never looked at stays"


def test_the_cache_lives_on_over_decoders() -> None:
    policy = exact_policy()
    context, ids = contexts(policy, PLAN), some_ids(PLAN, 4, 3)
    seen = set()
    for _ in range(3):
        decoder = policy.decoder()  # merged: a new one each time
        state, _ = decoder.start(PLAN, context, 3)
        seen.add(addresses(state))
        stepwise_logps(decoder, PLAN, context, ids)
    assert len(seen) == 1


def test_other_settings_are_another_decoder_and_known_ones_the_same() -> None:
    """So that settings can be compared in turn without a capture each time; a cache that is not kept disturbs none."""
    policy = exact_policy(merge_rollout=False)
    context, ids = contexts(policy, PLAN), some_ids(PLAN, 4, 3)
    expected = stepwise_logps(policy.decoder(), PLAN, context, ids)
    first, moves = policy.decoder(), policy._keeper.memory.moves
    for other in (EngineSettings(fused_projections=False), EngineSettings(reuse_cache=False)):
        policy.engine = other
        assert policy.decoder() is policy.decoder() is not first
        torch.testing.assert_close(stepwise_logps(policy.decoder(), PLAN, context, ids), expected, atol=1e-10, rtol=0)
    policy.engine = EngineSettings()
    assert policy.decoder() is first
    assert policy._keeper.memory.moves == moves


def test_grouping_the_weights_voids_decoders_that_read_them_apart() -> None:
    policy = exact_policy(merge_rollout=False)
    context, ids = contexts(policy, PLAN), some_ids(PLAN, 4, 3)
    policy.engine = EngineSettings(fused_projections=False)
    apart = policy.decoder()
    policy.engine = EngineSettings()
    together = policy.decoder()
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if "lora_B" in name:
                parameter.mul_(-1.0)
    assert policy.decoder() is together
    policy.engine = EngineSettings(fused_projections=False)
    assert policy.decoder() is not apart
    expected = level_logps(policy.janus, PLAN, context, ids)
    for decoder in (together, policy.decoder()):
        torch.testing.assert_close(stepwise_logps(decoder, PLAN, context, ids), expected, atol=1e-10, rtol=0)


@pytest.mark.parametrize("reuse", [True, False])
def test_what_a_rollout_leaves_behind(reuse: bool) -> None:
    policy = exact_policy(merge_rollout=False)
    policy.engine = EngineSettings(reuse_cache=reuse)
    context = contexts(policy, PLAN)
    decode(policy.decoder(), PLAN, context, torch.rand((4, 3), dtype=torch.float64), Sampling())
    decoder = policy.decoder()
    assert (decoder._memory.bytes > 0) == reuse
    policy.release_cache()
    assert policy._keeper.memory.bytes == 0
    assert policy.decoder() is not decoder


def test_a_void_state_is_refused() -> None:
    policy = exact_policy()
    decoder, context = policy.decoder(), contexts(policy, PLAN)
    old, _ = decoder.start(PLAN, context, 3)
    new, _ = decoder.start(PLAN, context, 3)
    decoder.advance(new, some_ids(PLAN, 4, 1)[:, 0])
    with pytest.raises(RuntimeError, match=r"a later start\(\) took its cache"):
        decoder.advance(old, some_ids(PLAN, 4, 1)[:, 0])
