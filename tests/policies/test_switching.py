"""Adapters and weights on one base: nothing is left of them when their block ends, and none fits by chance."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from src.policies.load import load_janus
from src.policies.switching import (
    adapter_decoder,
    add_adapter,
    base_decoder,
    base_parameters,
    check_weights_fit,
    weights_decoder,
)
from tests.conftest import ROOT
from tests.policies.toy import ToyPolicy

BASE = ROOT / "src/shapes/checkpoint"


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two adapters of different rank that change much."""
    folder, paths = tmp_path_factory.mktemp("adapters"), []
    for rank in (2, 4):
        policy: Any = load_janus(BASE, lora={"r": rank})
        for name, parameter in policy.named_parameters():
            if ".lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.3)
        policy.adapter.save_pretrained(str(folder / str(rank)))
        paths.append(folder / str(rank))
    return paths


@pytest.fixture
def policy() -> Any:
    return load_janus(BASE, lora={})


def features(policy: Any, decoder: Any) -> torch.Tensor:
    context = policy.plan_context(["a red circle"])
    return decoder.evaluate("plan", context, torch.arange(5, 9)[None])


@pytest.mark.parametrize("merge", [True, False])
def test_each_adapter_decodes_as_if_it_were_alone_and_the_base_as_if_there_were_none(
    adapters: list[Path], policy: Any, merge: bool
) -> None:
    policy.merge_rollout = merge
    for place, path in enumerate(adapters):
        add_adapter(policy, path, f"number_{place}")
    plain = load_janus(BASE, lora={}, merge_rollout=merge)
    alone = [load_janus(BASE, adapter=path, merge_rollout=merge) for path in adapters]
    wanted = [features(one, one.decoder()) for one in (plain, *alone)]
    assert not torch.allclose(wanted[0], wanted[1])
    assert not torch.allclose(wanted[1], wanted[2])
    for place in (0, 1, 0):
        with adapter_decoder(policy, f"number_{place}") as decoder:
            assert torch.equal(features(policy, decoder), wanted[1 + place])
        with base_decoder(policy) as decoder:
            # Unmerged, a fresh adapter is an exact zero added.
            assert torch.equal(features(policy, decoder), wanted[0])


def test_lent_weights_decode_and_are_given_back_exactly(tmp_path: Path, policy: Any) -> None:
    full: Any = load_janus(BASE, lora=None)
    with torch.no_grad():
        for parameter in full.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.05)
    trained = {name: p.detach().clone() for name, p in full.named_parameters() if p.requires_grad}
    file = tmp_path / "best.safetensors"
    save_file({f"policy.{name}": value for name, value in trained.items()}, file)
    check_weights_fit(policy, file)
    before = {name: p.detach().clone() for name, p in base_parameters(policy).items()}
    with weights_decoder(policy, file) as decoder:
        assert torch.equal(features(policy, decoder), features(full, full.decoder()))
        assert not all(torch.equal(p, before[name]) for name, p in base_parameters(policy).items())
    assert all(torch.equal(p, before[name]) for name, p in base_parameters(policy).items())


def test_weights_of_another_model_are_refused(tmp_path: Path, policy: Any) -> None:
    name = next(iter(base_parameters(policy)))
    file = tmp_path / "x.safetensors"
    save_file({f"policy.{name}": torch.zeros(1)}, file)
    with pytest.raises(ValueError, match=r"does not fit the base model: network\..* is \[1\]"):
        check_weights_fit(policy, file)
    save_file({"policy.other": torch.zeros(1)}, file)
    with pytest.raises(ValueError, match=r"other .* has no place"):
        check_weights_fit(policy, file)
    file.write_bytes(b"no safetensors")
    with pytest.raises(ValueError, match="damaged"):
        check_weights_fit(policy, file)


def test_a_policy_without_adapters_decodes_with_lent_weights_too(tmp_path: Path) -> None:
    """Its reference is a frozen copy: the base, and not what is lent."""
    policy, other, file = ToyPolicy(seed=0), ToyPolicy(seed=1), tmp_path / "best.safetensors"
    save_file({f"policy.{name}": value.detach().clone() for name, value in other.named_parameters()}, file)
    check_weights_fit(policy, file)
    context = policy.plan_context(["red"])
    ids = torch.zeros((1, 2), dtype=torch.int64)
    wanted = [one.decoder().evaluate("plan", context, ids) for one in (policy, other)]
    assert not torch.allclose(*wanted)
    with weights_decoder(policy, file) as decoder:
        assert torch.equal(decoder.evaluate("plan", context, ids), wanted[1])
    with base_decoder(policy) as decoder:
        assert torch.equal(decoder.evaluate("plan", context, ids), wanted[0])


def test_a_policy_without_adapters_says_so(adapters: list[Path]) -> None:
    with pytest.raises(ValueError, match="ToyPolicy cannot take more adapters"):
        add_adapter(ToyPolicy(), adapters[0], "x")
