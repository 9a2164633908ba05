"""token_statistics against torch.distributions, float64, finite differences and closed forms."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.distributions import Categorical, kl_divergence

from kernels import guide, token_statistics


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64, scale: float = 2.0) -> Tensor:
    return (torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * scale).to(dtype)


def draw_ids(n: int, t: int, v: int, seed: int = 9) -> Tensor:
    return torch.randint(v, (n, t), generator=torch.Generator().manual_seed(seed))


def test_everything_equals_torch_distributions_of_the_guided_distribution() -> None:
    n, t, v, w, tau = 3, 4, 17, 2.5, 0.7
    c, u, rc, ru = (draw(n, t, v, seed=s) for s in range(4))
    ids = draw_ids(n, t, v)
    policy = Categorical(logits=(u + w * (c - u)) / tau)
    reference = Categorical(logits=(ru + w * (rc - ru)) / tau)
    result = token_statistics(
        c, ids, temperature=tau, unconditional=u, guidance_scale=w, ref_logits=rc, ref_unconditional=ru, kl="exact"
    )
    torch.testing.assert_close(result.logp, policy.log_prob(ids))
    torch.testing.assert_close(result.log_ratio, reference.log_prob(ids) - policy.log_prob(ids))
    torch.testing.assert_close(result.kl, kl_divergence(policy, reference))
    torch.testing.assert_close(result.entropy, policy.entropy())


@pytest.mark.parametrize("name", ["k1", "k2", "k3"])
def test_estimators_are_of_the_log_ratio_and_a_ready_reference_gives_the_same(name: str) -> None:
    logits, ref = draw(2, 3, 8), draw(2, 3, 8, seed=1)
    ids = draw_ids(2, 3, 8)
    from_rows = token_statistics(logits, ids, ref_logits=ref, kl=name)
    from_logp = token_statistics(logits, ids, ref_logp=Categorical(logits=ref).log_prob(ids), kl=name)
    d = from_rows.log_ratio
    assert d is not None
    torch.testing.assert_close(from_rows.kl, {"k1": -d, "k2": d * d / 2, "k3": d.exp() - d - 1}[name])
    torch.testing.assert_close(from_logp.kl, from_rows.kl)


def test_what_is_not_asked_for_is_not_there() -> None:
    logits, ids = draw(2, 3, 8), draw_ids(2, 3, 8)
    alone = token_statistics(logits, ids, entropy=False)
    assert (alone.log_ratio, alone.kl, alone.entropy) == (None, None, None)
    without_kl = token_statistics(logits, ids, ref_logits=logits, kl=None)
    assert without_kl.kl is None
    assert without_kl.log_ratio is not None


@pytest.mark.parametrize("kl", ["k1", "k2", "k3", "exact"])
@pytest.mark.parametrize("w", [1.0, 3.0])
def test_gradcheck_in_float64(kl: str, w: float) -> None:
    n, t, v = 2, 2, 5
    ids = draw_ids(n, t, v)
    ref, ref_u = draw(n, t, v, seed=2), draw(n, t, v, seed=3)

    def f(c: Tensor, u: Tensor) -> tuple[Tensor, ...]:
        result = token_statistics(
            c,
            ids,
            temperature=0.8,
            unconditional=u,
            guidance_scale=w,
            unconditional_grad=True,
            ref_logits=ref,
            ref_unconditional=ref_u,
            kl=kl,
        )
        return tuple(x for x in result if x is not None)

    c, u = draw(n, t, v).requires_grad_(), draw(n, t, v, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(f, (c, u))


def test_guidance_scales_the_gradient_by_w_and_gives_one_minus_w_to_the_unconditional_branch() -> None:
    w, ids = 5.0, draw_ids(2, 3, 7)
    c, u = draw(2, 3, 7).requires_grad_(), draw(2, 3, 7, seed=1).requires_grad_()
    mixed = (u + w * (c - u)).detach().requires_grad_()
    (g,) = torch.autograd.grad(Categorical(logits=mixed).log_prob(ids).sum(), mixed)

    logp = token_statistics(c, ids, unconditional=u, guidance_scale=w, unconditional_grad=True, entropy=False).logp
    to_c, to_u = torch.autograd.grad(logp.sum(), (c, u))
    torch.testing.assert_close(to_c, w * g)
    torch.testing.assert_close(to_u, (1 - w) * g)

    logp = token_statistics(c, ids, unconditional=u, guidance_scale=w, entropy=False).logp
    to_c, to_u = torch.autograd.grad(logp.sum(), (c, u), allow_unused=True)
    torch.testing.assert_close(to_c, w * g)
    assert to_u is None


def test_the_reference_gets_no_gradient() -> None:
    c, ref = draw(2, 3, 7).requires_grad_(), draw(2, 3, 7, seed=1).requires_grad_()
    for kl in ("k3", "exact"):
        result = token_statistics(c, draw_ids(2, 3, 7), ref_logits=ref, kl=kl)
        assert result.kl is not None
        assert torch.autograd.grad(result.kl.sum(), (c, ref), allow_unused=True)[1] is None


def test_an_entropy_for_the_logs_has_no_graph() -> None:
    c, ids = draw(2, 3, 7).requires_grad_(), draw_ids(2, 3, 7)
    result = token_statistics(c, ids, entropy_grad=False)
    assert result.entropy is not None
    assert not result.entropy.requires_grad
    assert result.logp.requires_grad
    torch.testing.assert_close(result.entropy, Categorical(logits=c.detach()).entropy())
    with torch.no_grad():
        assert not any(x.requires_grad for x in token_statistics(c, ids) if x is not None)


def test_a_saved_graph_can_be_used_twice() -> None:
    c = draw(2, 3, 7).requires_grad_()
    result = token_statistics(c, draw_ids(2, 3, 7), ref_logits=draw(2, 3, 7, seed=1))
    assert result.kl is not None
    total = (result.logp + result.kl).sum()
    first = torch.autograd.grad(total, c, retain_graph=True)[0]
    torch.testing.assert_close(torch.autograd.grad(total, c)[0], first, rtol=0, atol=0)


@pytest.mark.parametrize("w", [1.0, 1.5])
@pytest.mark.parametrize("v", [1, 2, 64, 127, 16_384])
def test_float32_keeps_to_float64(v: int, w: float) -> None:
    n, t = 2, 3
    ids = draw_ids(n, t, v)
    c = draw(n, t, v, dtype=torch.float32)
    u = draw(n, t, v, seed=1, dtype=torch.float32)
    rc = c + draw(n, t, v, seed=2, dtype=torch.float32, scale=1e-2)
    options: dict[str, Any] = {"guidance_scale": w, "kl": "k3"}
    got = token_statistics(c, ids, unconditional=u, ref_logits=rc, ref_unconditional=u, **options)
    want = token_statistics(
        c.double(), ids, unconditional=u.double(), ref_logits=rc.double(), ref_unconditional=u.double(), **options
    )
    assert all(x is not None and x.dtype == torch.float32 for x in got)
    assert all(x is not None and x.dtype == torch.float64 for x in want)
    torch.testing.assert_close(got.logp.double(), want.logp, rtol=1e-5, atol=1e-6)
    assert got.kl is not None
    assert want.kl is not None
    assert want.log_ratio is not None
    assert ((got.kl - want.kl).abs() <= 4e-6 * want.log_ratio.expm1().abs() + 1e-11).all()
    torch.testing.assert_close(got.entropy.double(), want.entropy, rtol=1e-5, atol=1e-6)  # type: ignore[union-attr]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_inputs_are_summed_in_float32(dtype: torch.dtype) -> None:
    ids = draw_ids(2, 3, 500)
    logits = draw(2, 3, 500, dtype=dtype)
    result = token_statistics(logits, ids, temperature=0.7, ref_logits=logits, kl="exact")
    assert result.logp.dtype == torch.float32
    expected = Categorical(logits=logits.double() / 0.7).log_prob(ids)
    torch.testing.assert_close(result.logp.double(), expected, rtol=1e-5, atol=1e-6)
    assert result.kl is not None
    assert result.kl.eq(0).all()


def test_a_vocabulary_of_one_has_nothing_to_say() -> None:
    result = token_statistics(draw(2, 3, 1), torch.zeros(2, 3, dtype=torch.int64), ref_logits=draw(2, 3, 1, seed=1))
    assert all(x is not None and x.eq(0).all() for x in result)


def test_no_tokens_give_empty_statistics_and_a_zero_gradient() -> None:
    logits = draw(2, 0, 5).requires_grad_()
    result = token_statistics(logits, draw_ids(2, 0, 5), ref_logits=draw(2, 0, 5), kl="exact")
    assert all(x is not None and x.shape == (2, 0) for x in result)
    assert torch.autograd.grad(result.logp.sum(), logits)[0].shape == (2, 0, 5)


def test_equal_logits_are_uniform_whatever_their_level() -> None:
    for level in (0.0, -75.0, 80.0, 1e4):
        result = token_statistics(torch.full((1, 2, 64), level), torch.tensor([[0, 63]]))
        torch.testing.assert_close(result.logp, torch.full((1, 2), -math.log(64)))
        torch.testing.assert_close(result.entropy, torch.full((1, 2), math.log(64)))


def test_ids_at_both_ends_of_large_and_of_all_negative_logits() -> None:
    logits = torch.linspace(-80, 80, 101).view(1, 1, -1).expand(1, 2, -1).contiguous()
    ids = torch.tensor([[0, 100]])
    for shifted in (logits, logits - 200):
        result = token_statistics(shifted, ids)
        expected = shifted.double().log_softmax(-1).gather(-1, ids.unsqueeze(-1)).squeeze(-1)
        torch.testing.assert_close(result.logp.double(), expected, rtol=1e-5, atol=1e-6)


def test_a_policy_equal_to_its_reference_has_exactly_no_kl() -> None:
    logits, u, ids = (
        draw(3, 4, 50, dtype=torch.float32),
        draw(3, 4, 50, seed=1, dtype=torch.float32),
        draw_ids(3, 4, 50),
    )
    for kl in ("k1", "k2", "k3", "exact"):
        result = token_statistics(
            logits, ids, unconditional=u, guidance_scale=5.0, ref_logits=logits.clone(), ref_unconditional=u, kl=kl
        )
        assert result.kl is not None
        assert result.kl.eq(0).all()


def test_strided_inputs_give_what_contiguous_ones_do() -> None:
    wide = draw(4, 3, 2, 10)
    logits, ids = wide[::2, :, 1], draw_ids(4, 6, 10)[::2, 1::2]
    assert not logits.is_contiguous()
    assert not ids.is_contiguous()
    got = token_statistics(logits, ids, ref_logits=wide[1::2, :, 0])
    want = token_statistics(logits.contiguous(), ids.contiguous(), ref_logits=wide[1::2, :, 0].contiguous())
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_guide_is_the_formula_and_exact_at_its_ends() -> None:
    c, u = draw(5, dtype=torch.float32), draw(5, seed=1, dtype=torch.float32)
    want = u.double() + 5.0 * (c.double() - u.double())
    # Three float32 roundings, or two where the processor multiplies and adds at once, of what is summed.
    largest = (u.abs() + 5.0 * (c.abs() + u.abs())).max().item()
    torch.testing.assert_close(guide(c, u, 5.0).double(), want, rtol=0, atol=3 * 2.0**-24 * largest)
    assert guide(c, u, 1.0).equal(c)
    assert guide(c, u, 0.0).equal(u)
    assert guide(c.bfloat16(), u.bfloat16(), 2.0).dtype == torch.float32


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 3),
    st.integers(1, 4),
    st.integers(1, 40),
    st.floats(0.1, 60),
    st.floats(0.2, 3),
    st.integers(0, 10**6),
)
def test_signs_hold_for_any_input(n: int, t: int, v: int, scale: float, temperature: float, seed: int) -> None:
    logits, ref = (draw(n, t, v, seed=seed + i, dtype=torch.float32, scale=scale) for i in range(2))
    ids = draw_ids(n, t, v, seed=seed)
    k3 = token_statistics(logits, ids, temperature=temperature, ref_logits=ref, kl="k3")
    exact = token_statistics(logits, ids, temperature=temperature, ref_logits=ref, kl="exact")
    assert (k3.logp <= 0).all()
    assert k3.kl is not None
    assert (k3.kl >= 0).all()
    assert exact.kl is not None
    assert (exact.kl >= 0).all()
    assert k3.entropy is not None
    assert (k3.entropy >= -1e-6).all()
    assert (k3.entropy <= math.log(v) + 1e-5).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ids": torch.zeros(2, 4, dtype=torch.int64)}, r"ids: shape \(2, 4\), expected \(2, 3\).*\(2, 3, 5\)"),
        ({"ids": torch.zeros(2, 3, dtype=torch.int32)}, "int32"),
        ({"ids": torch.tensor([[0, 1, 2], [3, 4, 5]])}, r"values in \[0, 5\], expected \[0, 5\)"),
        ({"ids": torch.tensor([[0, 1, 2], [3, 4, -1]])}, r"values in \[-1, 4\]"),
        ({"logits": torch.zeros(6, 5)}, r"logits: .*\(6, 5\), expected floating \(N, T, V\)"),
        ({"logits": torch.zeros(2, 3, 5, dtype=torch.int64)}, "expected floating"),
        ({"unconditional": torch.zeros(2, 3, 4), "guidance_scale": 2.0}, r"unconditional: shape \(2, 3, 4\)"),
        ({"ref_logits": torch.zeros(2, 3, 6)}, r"ref_logits: shape \(2, 3, 6\), expected \(2, 3, 5\)"),
        ({"ref_logp": torch.zeros(3, 2)}, r"ref_logp: shape \(3, 2\), expected \(2, 3\)"),
        ({"guidance_scale": 2.0}, "unconditional branch is missing"),
        (
            {"guidance_scale": 2.0, "unconditional": torch.zeros(2, 3, 5), "ref_logits": torch.zeros(2, 3, 5)},
            "reference's unconditional branch is missing",
        ),
        ({"kl": "k9"}, "k9.*k1, k2, k3, exact"),
        ({"kl": "exact"}, "needs the reference's logits"),
        ({"kl": "exact", "ref_logp": torch.zeros(2, 3)}, "needs the reference's logits"),
        ({"ref_logits": torch.zeros(2, 3, 5), "ref_logp": torch.zeros(2, 3)}, "two references"),
        ({"temperature": 0.0}, "temperature=0.0"),
        ({"temperature": float("nan")}, "temperature=nan"),
    ],
)
def test_wrong_inputs_are_named(change: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {"logits": torch.zeros(2, 3, 5), "ids": torch.zeros(2, 3, dtype=torch.int64)}
    with pytest.raises(ValueError, match=message):
        token_statistics(**{**arguments, **change})
