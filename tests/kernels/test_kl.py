"""kernels.kl against decimal arithmetic, torch.distributions and float64."""

from __future__ import annotations

from decimal import Decimal, localcontext

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.distributions import Categorical, kl_divergence

from kernels import kl_estimate
from kernels.kl import exact_kl, k3

SMALL = [0.0, 1e-8, -1e-8, 3e-7, -1e-6, 1e-5, -4e-5, 1e-4, -1e-3, 2e-3, 0.01, -0.05]
ORDINARY = [0.3, -0.7, 1.0, -2.5, 6.0, -15.0, 30.0, -80.0]


def decimal_k3(d: float) -> tuple[float, float]:
    """(exp(d) - d - 1, exp(d) - 1) to 60 digits."""
    with localcontext() as context:
        context.prec = 60
        x = Decimal(d)
        return float(x.exp() - x - 1), float(x.exp() - 1)


@pytest.mark.parametrize("value", SMALL + ORDINARY)
def test_k3_in_float32_agrees_with_60_digits(value: float) -> None:
    d = torch.tensor(value, dtype=torch.float32, requires_grad=True)
    expected, slope = decimal_k3(d.item())
    result = k3(d)
    result.backward()
    # Half a unit in the last place of d is what the subtraction may lose, two of the result what expm1 may.
    assert abs(result.item() - expected) <= 6e-8 * abs(d.item()) + 2.4e-7 * expected
    assert d.grad is not None
    assert d.grad.item() == pytest.approx(slope, rel=3e-7, abs=1e-45)


def test_the_mean_of_small_k3_is_right_where_the_naive_form_is_lost() -> None:
    d = torch.randn(20_000, generator=torch.Generator().manual_seed(0)) * 1e-4
    expected = sum(decimal_k3(x)[0] for x in d.tolist()) / d.numel()
    assert k3(d).mean().item() == pytest.approx(expected, rel=1e-4)
    assert abs((d.exp() - d - 1).mean().item() / expected - 1) > 1e-2  # what the care is for


@given(st.floats(-80, 80, width=32))
def test_k3_is_never_negative(value: float) -> None:
    assert k3(torch.tensor(value, dtype=torch.float32)).item() >= 0


def test_estimators_by_hand() -> None:
    ratio = torch.tensor([2.0, 0.5])  # reference over policy
    d = ratio.log()
    torch.testing.assert_close(kl_estimate(d, "k1"), torch.tensor([-0.693147, 0.693147]))
    torch.testing.assert_close(kl_estimate(d, "k2"), torch.tensor([0.240227, 0.240227]))
    torch.testing.assert_close(kl_estimate(d, "k3"), torch.tensor([2 - 1 - 0.693147, 0.5 - 1 + 0.693147]))


@pytest.mark.parametrize("name", ["k1", "k3"])
def test_k1_and_k3_are_unbiased_and_exact_is_what_they_estimate(name: str) -> None:
    generator = torch.Generator().manual_seed(1)
    policy, reference = (torch.randn(12, generator=generator, dtype=torch.float64).log_softmax(-1) for _ in range(2))
    expected = (policy.exp() * kl_estimate(reference - policy, name)).sum()
    torch.testing.assert_close(exact_kl(policy, reference), expected)


@pytest.mark.parametrize("name", ["k1", "k2", "k3"])
def test_estimators_pass_gradcheck(name: str) -> None:
    d = torch.tensor([-1.5, -0.2, 0.0, 0.4, 2.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: kl_estimate(x, name), (d,))
    assert torch.autograd.gradgradcheck(lambda x: kl_estimate(x, name), (d,))


def test_gradients_in_the_loss_are_those_of_the_table() -> None:
    """In expectation over the policy's tokens: none for k1, KL(policy || reference)'s for k2, the other's for k3."""
    generator = torch.Generator().manual_seed(2)
    logits = torch.randn(9, generator=generator, dtype=torch.float64, requires_grad=True)
    reference = torch.randn(9, generator=generator, dtype=torch.float64).log_softmax(-1)
    p = logits.log_softmax(-1).detach().exp()
    gradients = {}
    for name in ("k1", "k2", "k3"):
        expected = (p * kl_estimate(reference - logits.log_softmax(-1), name)).sum()
        gradients[name] = torch.autograd.grad(expected, logits)[0]
    policy, other = Categorical(logits=logits), Categorical(logits=reference)
    forward = torch.autograd.grad(kl_divergence(policy, other), logits, retain_graph=True)[0]
    torch.testing.assert_close(gradients["k2"], forward)
    torch.testing.assert_close(gradients["k3"], torch.autograd.grad(kl_divergence(other, policy), logits)[0])
    torch.testing.assert_close(gradients["k1"], torch.zeros(9, dtype=torch.float64))


def test_exact_kl_equals_torch_distributions() -> None:
    generator = torch.Generator().manual_seed(3)
    policy, reference = (torch.randn(4, 5, 33, generator=generator, dtype=torch.float64) * 4 for _ in range(2))
    expected = kl_divergence(Categorical(logits=policy), Categorical(logits=reference))
    torch.testing.assert_close(exact_kl(policy.log_softmax(-1), reference.log_softmax(-1)), expected)


def test_exact_kl_of_close_rows_keeps_its_digits_in_float32() -> None:
    generator = torch.Generator().manual_seed(4)
    policy = torch.randn(200, 64, generator=generator, dtype=torch.float64).float()
    reference = policy + 1e-3 * torch.randn(200, 64, generator=generator)
    expected = exact_kl(policy.double().log_softmax(-1), reference.double().log_softmax(-1))
    naive = (policy.log_softmax(-1).exp() * (policy.log_softmax(-1) - reference.log_softmax(-1))).sum(-1)
    result = exact_kl(policy.log_softmax(-1), reference.log_softmax(-1))
    assert ((result - expected).abs() / expected).max() < 2e-3
    assert ((naive - expected).abs() / expected).max() > 2e-2  # what the care is for


def test_exact_kl_of_rows_that_hardly_overlap_is_finite_with_a_finite_gradient() -> None:
    policy = torch.tensor([[80.0, 0.0, -80.0]], requires_grad=True)
    reference = torch.tensor([[-80.0, 0.0, 80.0]])
    result = exact_kl(policy.log_softmax(-1), reference.log_softmax(-1))
    result.sum().backward()
    assert result.item() == pytest.approx(160.0, rel=1e-6)
    assert policy.grad is not None
    assert policy.grad.isfinite().all()


def test_exact_kl_of_equal_rows_is_exactly_zero() -> None:
    rows = torch.randn(3, 7, generator=torch.Generator().manual_seed(5)).log_softmax(-1)
    assert exact_kl(rows, rows.clone()).eq(0).all()


@pytest.mark.parametrize("name", ["exact", "k4", ""])
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="k1, k2, k3"):
        kl_estimate(torch.zeros(2), name)
