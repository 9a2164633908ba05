"""Tokens that do not count, whatever their statistics are: loss and gradient stay finite, theirs is exactly zero."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from kernels import Objective, Operations, operations
from kernels.kl import KL_NAMES
from tests.kernels.problems import draw

V, FAR = 300, 0


@pytest.fixture(params=["torch", "triton"])
def ops(request: pytest.FixtureRequest, triton_ops: Operations) -> Operations:
    return triton_ops if request.param == "triton" else operations("torch", "cpu")


def question() -> dict[str, Tensor]:
    """Two tokens: the first, masked, is one the policy would never draw and a uniform reference would."""
    features = draw(1, 2, V, seed=1)
    features[0, 0, FAR] = -100.0
    return {"features": features, "ref_features": torch.zeros(1, 2, V), "ids": torch.tensor([[FAR, 5]])}


def masked_mean(statistics: Any, mask: Tensor) -> Tensor:
    """A loss of all statistics that selects tokens rather than multiplying by the mask."""
    return sum(torch.where(mask, x, 0).sum() for x in statistics if x is not None)  # type: ignore[return-value]


@pytest.mark.parametrize("kl", KL_NAMES)
@pytest.mark.parametrize("path", ["logits", "hidden states"])
def test_a_masked_log_ratio_beyond_88_leaves_loss_and_gradient_finite(ops: Operations, path: str, kl: str) -> None:
    q = question()
    leaf = q["features"].requires_grad_()
    if path == "logits":
        result = ops.token_statistics(leaf, q["ids"], ref_logits=q["ref_features"], kl=kl)
    else:
        head = torch.eye(V)
        result = ops.head_statistics(leaf, head, None, q["ids"], ref_features=q["ref_features"], kl=kl)
    assert result.log_ratio is not None
    assert result.log_ratio[0, 0] > 90  # where exp overflows in float32
    loss = masked_mean(result, torch.tensor([[False, True]]))
    (gradient,) = torch.autograd.grad(loss, leaf)
    assert loss.isfinite()
    assert gradient.isfinite().all()
    assert gradient[0, 0].eq(0).all()
    assert gradient[0, 1].ne(0).any()


@pytest.mark.parametrize("kl", KL_NAMES)
def test_one_pass_leaves_it_finite_too(ops: Operations, kl: str) -> None:
    q = question()
    leaf = q["features"].requires_grad_()
    loss, statistics = ops.one_pass_head(
        leaf,
        torch.eye(V),
        None,
        q["ids"],
        objective=Objective(beta=0.1, kl=kl, entropy_bonus=0.05),
        advantages=torch.ones(1),
        token_weights=torch.tensor([[0.0, 1.0]]),
        correction=torch.tensor([[torch.inf, 1.0]]),  # of a masked token nothing is asked
        normaliser=1.0,
        ref_features=q["ref_features"],
    )
    assert statistics.log_ratio is not None
    assert statistics.log_ratio[0, 0] > 90
    (gradient,) = torch.autograd.grad(loss, leaf)
    assert loss.isfinite()
    assert gradient.isfinite().all()
    assert gradient[0, 0].eq(0).all()
    assert gradient[0, 1].ne(0).any()
