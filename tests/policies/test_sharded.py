"""FSDP2's cut weights and the whole copy that decodes, in one process: what is shared, moved, rounded and kept."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch import distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor

from src.policies.base import Shardable
from src.policies.dtensors import cut_like, whole, write_whole
from src.policies.engine.snapshot import trained_parameters
from src.policies.sizes import model_sizes
from src.training.memory import GIB, StepCut, StepShape, estimate, held_bytes
from src.training.token_statistics import score_level
from src.values import IMAGE, LEVELS, PLAN
from tests.policies.published import published_policy
from tests.policies.tiny import exact_policy, tiny_policy
from tests.training.pieces import OPERATIONS, assert_same_gradients, collected, update_settings, updated
from tests.training.test_memory import SHAPE


@pytest.fixture(scope="module")
def mesh() -> Iterator[DeviceMesh]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


def cut_policy(mesh: DeviceMesh, dtype: torch.dtype | None = None, make: Any = tiny_policy, **made: Any) -> Any:
    policy = make(**made)
    policy.shard(mesh, dtype)
    return policy


def change(policy: Any, by: float = 0.1) -> None:
    """As an optimiser step does: the trained weights, then the word that they changed."""
    with torch.no_grad():
        for parameter in trained_parameters(policy).values():
            parameter.add_(by)
    policy.refresh_rollout_weights()


def shape_of(dtype: torch.dtype | None, processes: int = 1) -> StepShape:
    return replace(SHAPE, sharded=True, mixed=dtype is not None, processes=processes)


def logp(decoder: Any, level: Any) -> Tensor:
    return score_level(OPERATIONS, decoder, IMAGE, level, True).logp


@pytest.mark.parametrize("lora", [None, {"r": 4}], ids=["full", "lora"])
def test_it_trains_and_decodes_as_the_uncut_policy(mesh: DeviceMesh, lora: Any) -> None:
    plain, cut = exact_policy(lora=lora), cut_policy(mesh, make=exact_policy, lora=lora)
    assert isinstance(cut, Shardable)
    assert all(isinstance(parameter, DTensor) for parameter in trained_parameters(cut).values())
    expected, found = collected(plain).experience, collected(cut).experience
    for name in LEVELS:
        assert torch.equal(found.levels[name].ids, expected.levels[name].ids)
        torch.testing.assert_close(found.levels[name].ref_logp, expected.levels[name].ref_logp, atol=1e-10, rtol=0)
    gradients = [updated(policy, expected, update_settings(), size=5)[1] for policy in (plain, cut)]
    assert_same_gradients({name: whole(value) for name, value in gradients[1].items()}, gradients[0])


@pytest.mark.parametrize("lora", [None, {"r": 4}], ids=["full", "lora"])
def test_the_copy_follows_at_its_addresses_and_the_reference_stays(mesh: DeviceMesh, lora: Any) -> None:
    """The decoder in place stays the same object, so that what was captured on it stays valid."""
    plain, cut = (make(lora=lora, merge_rollout=False) for make in (tiny_policy, lambda **k: cut_policy(mesh, **k)))
    level = collected(plain).experience.levels[IMAGE]
    decoder = cut.decoder()
    with plain.reference() as first:
        reference = logp(first, level)
    for policy in (plain, cut):
        change(policy)
    assert cut.decoder() is decoder
    assert not torch.allclose(logp(decoder, level), reference)
    torch.testing.assert_close(logp(decoder, level), logp(plain.decoder(), level))
    with cut.reference() as second:
        torch.testing.assert_close(logp(second, level), reference)
    torch.testing.assert_close(logp(decoder, level), logp(plain.decoder(), level))


def test_a_reference_head_outlives_the_loan(mesh: DeviceMesh) -> None:
    """The exact KL keeps the reference's head until the update; the copy holds other weights by then."""
    cut = cut_policy(mesh, lora=None)
    before = whole(cut.janus.lm_head.weight).clone()
    change(cut)
    with cut.reference() as reference:
        kept = reference.head(PLAN)
    assert torch.equal(kept.weight, before)
    assert torch.equal(cut.decoder().head(PLAN).weight, before + 0.1)


@pytest.mark.parametrize("lora", [None, {"r": 4}], ids=["full", "lora"])
def test_a_moved_reference_is_saved_whole_and_loaded_again(mesh: DeviceMesh, lora: Any) -> None:
    plain, cut, resumed = tiny_policy(lora=lora), cut_policy(mesh, lora=lora), cut_policy(mesh, lora=lora)
    level = collected(plain).experience.levels[IMAGE]
    assert cut.reference_state() == {}
    for policy in (plain, cut):
        change(policy)
        policy.refresh_reference()
    assert cut.reference_state().keys() == plain.reference_state().keys()
    for name, value in cut.reference_state().items():
        assert torch.equal(value, plain.reference_state()[name])
    resumed.load_reference_state(cut.reference_state())
    change(cut)
    for policy in (cut, resumed):
        with plain.reference() as expected, policy.reference() as found:
            torch.testing.assert_close(logp(found, level), logp(expected, level))


def test_bf16_products_keep_float32_masters(mesh: DeviceMesh) -> None:
    """An update far below the precision of bf16 is not lost, and gradients are float32."""
    cut = cut_policy(mesh, torch.bfloat16, lora=None)
    experience = collected(cut).experience
    assert experience.levels[IMAGE].unconditional_features.dtype == torch.bfloat16
    gradients = updated(cut, experience, update_settings(), size=5)[1]
    assert {value.dtype for value in gradients.values()} == {torch.float32}
    exact = updated(tiny_policy(lora=None), experience, update_settings(), size=5)[1]
    norms = [torch.stack([whole(g).norm() for g in found.values()]).norm() for found in (gradients, exact)]
    assert float(norms[0] / norms[1]) == pytest.approx(1, abs=0.1)
    weight = cut.janus.lm_head.weight
    before = whole(weight).clone()
    for _ in range(200):
        change(cut, 1e-5)
    torch.testing.assert_close(whole(weight), before + 2e-3, atol=1e-5, rtol=0)
    assert torch.equal(cut.decoder().head(PLAN).weight, whole(weight).bfloat16())


@pytest.mark.parametrize(
    ("lora", "dtype"), [(None, None), (None, torch.bfloat16), ({"r": 4}, None)], ids=["full", "mixed", "lora"]
)
def test_the_formula_counts_every_byte_of_the_weights(mesh: DeviceMesh, lora: Any, dtype: Any) -> None:
    """Each storage once, and what two networks share once: parameters, buffers, copy, parts of the reference."""
    sizes = model_sizes(tiny_policy(lora=lora))
    cut = cut_policy(mesh, dtype, lora=lora)
    held = [
        *(p.to_local() if isinstance(p, DTensor) else p for p in cut.parameters()),
        *cut.buffers(),
        *cut._decoding.parameters(),
        *(part.to_local() for part in cut._reference_parts.values()),
    ]
    buffers = sum(b.numel() * b.element_size() for b in cut.buffers())
    expected = held_bytes(sizes, shape_of(dtype))
    # Buffers stay in float32 where frozen parameters are rounded to bf16.
    distinct = {x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in held}
    assert sum(distinct.values()) == expected + (buffers // 2 if dtype else 0)


def test_7b_in_full_fits_on_eight_cards_of_80_gib_and_not_without_cutting() -> None:
    sizes = model_sizes(published_policy("7B", lora=False))
    shape = shape_of(torch.bfloat16, processes=8)
    cut = StepCut(1, True, True)
    assert 35 * GIB < estimate(sizes, shape, cut).needs() < 50 * GIB
    assert estimate(sizes, replace(shape, sharded=False), cut).constant > 80 * GIB


def test_tensors_pass_through_cutting_unchanged(mesh: DeviceMesh) -> None:
    value = torch.arange(10.0).view(5, 2)
    cut = cut_like(value, cut_policy(mesh, lora=None).janus.lm_head.weight)
    assert isinstance(cut, DTensor)
    assert torch.equal(whole(cut), value)
    assert cut_like(value, value) is value
    write_whole(cut, value + 1)
    assert torch.equal(whole(cut), value + 1)
