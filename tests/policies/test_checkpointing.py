"""Activation checkpointing: the same gradients from less memory, the policy in eval mode all along."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from src.policies.checkpointing import Recomputed
from src.policies.janus import JanusPolicy
from src.values import IMAGE, PLAN
from tests.memory_meter import kept_for_backward, storage_bytes
from tests.policies.tiny import tiny_policy
from tests.training.pieces import collected, gradients, update_settings, updated

KINDS: dict[str, dict[str, Any]] = {
    "lora": {"lora": {"r": 4}},
    "full": {"lora": None},
    "bf16": {"lora": {"r": 4}, "dtype": torch.bfloat16},
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("split_levels", [False, True])
def test_the_gradients_are_the_same_bits(kind: str, split_levels: bool) -> None:
    """Contexts of unequal length; recomputed layers run the very same operations."""
    policy = tiny_policy(**KINDS[kind])
    experience = collected(policy).experience
    loss, plain, _, _ = updated(policy, experience, update_settings(), 5, split_levels=split_levels)
    policy.checkpoint_activations()
    again, recomputed, _, _ = updated(policy, experience, update_settings(), 5, split_levels=split_levels)
    assert again == loss
    assert recomputed.keys() == plain.keys()
    assert max(float(value.abs().max()) for value in plain.values()) > 0
    for name, value in plain.items():
        assert torch.equal(recomputed[name], value), name


@pytest.mark.parametrize("kind", KINDS)
def test_a_layer_more_keeps_its_input_only(kind: str) -> None:
    def kept(layers: int, checkpointing: bool) -> int:
        policy = tiny_policy(**KINDS[kind], layers=layers)
        if checkpointing:
            policy.checkpoint_activations()
        with kept_for_backward(policy) as tensors:
            policy({PLAN: level})
        return storage_bytes(tensors)

    policy = tiny_policy(**KINDS[kind])
    level = collected(policy).experience.levels[PLAN]
    rows, places = len(level), level.context.ids.shape[1] + level.ids.shape[1] - 1
    stream = rows * places * 32 * policy.janus.lm_head.weight.element_size()
    assert kept(4, True) - kept(3, True) == stream
    assert kept(4, False) - kept(3, False) > 10 * stream


def test_modes_and_names_stay_as_they_are() -> None:
    """transformers' own checkpointing works in training mode only: these layers stay in eval mode."""
    policy = tiny_policy()
    names, modes = list(policy.state_dict()), [module.training for module in policy.modules()]
    policy.checkpoint_activations()
    assert list(policy.state_dict()) == names
    assert [module.training for module in policy.modules()] == modes
    assert not any(layer.training for layer in policy.janus.model.language_model.layers)


def test_a_pass_without_a_graph_is_the_layer_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = tiny_policy()
    level = collected(policy).experience.levels[IMAGE]
    policy.checkpoint_activations()
    used: list[str] = []
    monkeypatch.setattr("src.policies.checkpointing.checkpoint", lambda *_, **__: used.append("checkpoint"))
    with torch.no_grad():
        assert torch.isfinite(policy({IMAGE: level})[IMAGE].features).all()
    assert not used


def test_layers_are_wrapped_once_and_copies_are_their_own() -> None:
    policy = tiny_policy(lora=None)
    policy.checkpoint_activations()
    policy.checkpoint_activations()
    layers = policy.janus.model.language_model.layers
    assert all(isinstance(layer.forward, Recomputed) for layer in layers)
    assert not any(isinstance(layer.forward.forward, Recomputed) for layer in layers)
    twin = copy.deepcopy(policy)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.zero_()
    level = collected(twin).experience.levels[IMAGE]
    twin({IMAGE: level})[IMAGE].features.sum().backward()
    assert isinstance(twin, JanusPolicy)
    assert any(float(value.abs().max()) > 0 for value in gradients(twin).values()), "it runs its own layers"
    assert not gradients(policy)
