"""Float32 masters of bf16 products decode as a bf16 copy: what follows, what is kept, what exists once."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from src.policies.base import MixedPrecision
from src.policies.engine.snapshot import trained_parameters
from src.policies.sizes import model_sizes
from src.training.memory import held_bytes
from src.training.token_statistics import score_level
from src.values import IMAGE, PLAN
from tests import tiny_run
from tests.policies.test_sharded import change
from tests.policies.tiny import tiny_policy
from tests.training.pieces import OPERATIONS, collected, update_settings, updated
from tests.training.test_memory import SHAPE


def mixed_policy() -> Any:
    policy = tiny_policy(lora=None)
    policy.decode_in(torch.bfloat16)
    return policy


def rounded(policy: Any) -> Any:
    """The policy with its own parameters in bf16."""
    for parameter in policy.parameters():
        parameter.data = parameter.data.bfloat16()
    return policy


def logp(decoder: Any, level: Any) -> Tensor:
    return score_level(OPERATIONS, decoder, IMAGE, level, True).logp


def test_a_copy_decodes_and_follows_at_its_addresses() -> None:
    plain, mixed = tiny_policy(lora=None), mixed_policy()
    assert isinstance(mixed, MixedPrecision)
    level = collected(plain).experience.levels[IMAGE]
    decoder = mixed.decoder()
    assert decoder.head(PLAN).weight.dtype == torch.bfloat16
    assert {parameter.dtype for parameter in trained_parameters(mixed).values()} == {torch.float32}
    before = logp(decoder, level)
    assert torch.equal(before, logp(rounded(copy.deepcopy(plain)).decoder(), level))
    for policy in (plain, mixed):
        change(policy)
    assert mixed.decoder() is decoder, "what was captured on it stays valid"
    assert not torch.equal(logp(decoder, level), before)
    assert torch.equal(logp(decoder, level), logp(rounded(plain).decoder(), level))


def test_updates_below_the_precision_of_bf16_are_kept() -> None:
    mixed = mixed_policy()
    experience = collected(mixed).experience
    assert experience.levels[IMAGE].unconditional_features.dtype == torch.bfloat16
    with torch.autocast("cpu", torch.bfloat16):
        gradients = updated(mixed, experience, update_settings(), size=5)[1]
    exact = updated(tiny_policy(lora=None), experience, update_settings(), size=5)[1]
    assert {value.dtype for value in gradients.values()} == {torch.float32}
    norms = [torch.stack([g.norm() for g in found.values()]).norm() for found in (gradients, exact)]
    assert float(norms[0] / norms[1]) == pytest.approx(1, abs=0.1)
    weight = mixed.janus.lm_head.weight
    before = weight.detach().clone()
    for _ in range(200):
        change(mixed, 1e-5)
    torch.testing.assert_close(weight.detach(), before + 2e-3, atol=1e-5, rtol=0)
    assert torch.equal(mixed.decoder().head(PLAN).weight, weight.bfloat16())


def test_the_reference_stays_is_moved_saved_and_loaded() -> None:
    mixed, resumed = mixed_policy(), mixed_policy()
    level = collected(mixed).experience.levels[IMAGE]
    start = logp(mixed.decoder(), level)
    change(mixed)
    with mixed.reference() as reference:
        assert torch.equal(logp(reference, level), start)
    assert mixed.reference_state() == {}
    mixed.refresh_reference()
    resumed.load_reference_state(mixed.reference_state())
    moved = logp(mixed.decoder(), level)
    assert not torch.equal(moved, start)
    change(mixed)
    for policy in (mixed, resumed):
        with policy.reference() as reference:
            assert torch.equal(logp(reference, level), moved)


def test_loaded_weights_and_copies_of_the_policy_decode() -> None:
    mixed, other = mixed_policy(), mixed_policy()
    change(mixed)
    other.load_state_dict(
        {name: value for name, value in mixed.state_dict().items() if "lm_head" in name}, strict=False
    )
    assert torch.equal(other.decoder().head(PLAN).weight, mixed.decoder().head(PLAN).weight)
    twin = copy.deepcopy(mixed)
    change(twin)
    assert torch.equal(twin.decoder().head(PLAN).weight, twin.janus.lm_head.weight.bfloat16())
    assert torch.equal(mixed.decoder().head(PLAN).weight, mixed.janus.lm_head.weight.bfloat16()), (
        "the first's is its own"
    )


def test_it_moves_with_the_policy() -> None:
    mixed = mixed_policy()
    mixed.to(torch.device("meta"))
    assert mixed.decoder().head(PLAN).weight.is_meta
    with mixed.reference() as reference:
        assert reference.head(PLAN).weight.is_meta


def test_adapters_need_none() -> None:
    policy = tiny_policy()
    before = {name: parameter.dtype for name, parameter in policy.named_parameters()}
    policy.decode_in(torch.bfloat16)
    assert {name: parameter.dtype for name, parameter in policy.named_parameters()} == before
    assert policy.adapter is policy.network


@pytest.mark.parametrize(
    ("lora", "mixed"), [(None, False), (None, True), ({"r": 4}, False)], ids=["full", "mixed", "lora"]
)
def test_the_formula_counts_every_byte_of_the_weights(lora: Any, mixed: bool) -> None:
    """Each storage once: parameters and buffers of the policy, parameters of the copy and of the reference."""
    policy = tiny_policy(lora=lora)
    sizes = model_sizes(policy)
    if mixed:
        policy.decode_in(torch.bfloat16)
    networks = (policy, policy._decoding, *policy._reference)
    held = [*policy.buffers(), *(parameter for network in networks for parameter in network.parameters())]
    distinct = {x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in held}
    # Buffers stay in float32 where frozen parameters are rounded to bf16.
    rounded = sum(b.numel() * b.element_size() for b in policy.buffers()) // 2 if mixed else 0
    assert sum(distinct.values()) == held_bytes(sizes, replace(SHAPE, mixed=mixed)) + rounded


def test_a_run_in_mixed_precision_decodes_the_copy(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from src.policies.janus import JanusPolicy

    seen: list[tuple[torch.dtype, bool]] = []
    original = JanusPolicy.decoder

    def decoder(self: JanusPolicy) -> Any:
        made = original(self)
        weight = made.head(PLAN).weight
        seen.append((weight.dtype, torch.equal(weight, self.janus.lm_head.weight.to(weight.dtype))))
        return made

    monkeypatch.setattr(JanusPolicy, "decoder", decoder)
    line = ("model.lora=null", "trainer.precision=bf16-mixed", "trainer.max_steps=2", "optim.lr=1e-3")
    run = tiny_run.train(tmp_path / "run", *line)
    assert set(seen) == {(torch.bfloat16, True)}, "never the masters, and never weights of yesterday"
    assert {value.dtype for value in tiny_run.last_state(run).values()} == {torch.float32}
