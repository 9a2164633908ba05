"""The interpreted row kernels against plain torch in float64, on the same inputs."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels import Operations, token_statistics
from kernels.kl import KL_NAMES
from tests.kernels.problems import (
    answered,
    assert_gradients_near,
    assert_near,
    draw,
    draw_ids,
    in_float64,
    oracle,
    problem,
)


def check(ops: Operations, arguments: dict[str, Any], gradient_rtol: float = 2e-5, **options: Any) -> None:
    """Values and gradients against the oracle; logp to 1e-5 relative.

    A log-prob near 0 is the log of a float32 sum near 1, and each addition to that rounds by up to 6e-8, in whichever
    order the machine adds: 16 such roundings are allowed.
    """
    got, got_gradients = answered(ops.token_statistics, arguments, **options)
    want, want_gradients = oracle(arguments, **options)
    assert got.logp.dtype == torch.float32
    assert_near(got.logp, want.logp, 1e-5, 16 * 2.0**-24)
    assert_near(got.log_ratio, want.log_ratio, 1e-5, 4e-6)
    assert_near(got.kl, want.kl, 2e-5, 4e-6)
    assert_near(got.entropy, want.entropy, 1e-5, 1e-6)
    assert_gradients_near(got_gradients, want_gradients, gradient_rtol)


# Shorter than a block; a block and a bit; several; 16,384 is Janus's image vocabulary.
@pytest.mark.parametrize("v", [1, 2, 127, 1025, 5000])
@pytest.mark.parametrize("kl", KL_NAMES)
@pytest.mark.parametrize("w", [1.0, 3.0])
def test_values_and_gradients(triton_ops: Operations, v: int, kl: str, w: float) -> None:
    check(triton_ops, problem(1, 2, v, guidance_scale=w, temperature=0.8, kl=kl))


@pytest.mark.parametrize(("v", "rows"), [(16_384, 2), (102_400, 1)])
@pytest.mark.parametrize("kl", ["k3", "exact"])
def test_real_vocabularies(triton_ops: Operations, v: int, rows: int, kl: str) -> None:
    check(triton_ops, problem(1, rows, v, kl=kl))


def test_the_whole_text_vocabulary_under_guidance(triton_ops: Operations) -> None:
    check(triton_ops, problem(1, 1, 102_400, guidance_scale=5.0, kl="exact", sampled=True), gradient_rtol=5e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("kl", "w"), [("k3", 1.0), ("exact", 5.0)])
def test_half_precision_is_exact_but_for_the_rounding_of_the_gradient(
    triton_ops: Operations, dtype: torch.dtype, kl: str, w: float
) -> None:
    rounding = torch.finfo(dtype).eps  # half of it, and as much again for what is lost before
    check(triton_ops, problem(2, 2, 3000, dtype=dtype, guidance_scale=w, kl=kl), gradient_rtol=rounding)


@pytest.mark.parametrize("w", [1.0, 5.0])
@pytest.mark.parametrize("apart", [1e-4, 1e-3, 1e-2, 1.0])
def test_k3_of_small_and_large_differences_keeps_its_digits(triton_ops: Operations, apart: float, w: float) -> None:
    arguments = problem(1, 4, 16_384, spread=2.0, apart=apart, guidance_scale=w, kl="k3", sampled=True)
    got, want = triton_ops.token_statistics(**arguments).kl, oracle(arguments)[0]
    assert got is not None
    assert want.kl is not None
    assert want.log_ratio is not None
    rounding = torch.finfo(torch.float32).eps * want.kl
    # A log ratio of tens of nats under guidance: float32 inputs, mixed, are off by more than the sums are.
    mixing = 2e-6 if w == 5.0 and apart == 1.0 else 0.0
    bound = (4e-6 + mixing) * want.log_ratio.expm1().abs() + 1e-11 + rounding
    assert ((got.double() - want.kl).abs() <= bound).all()
    if w == 1.0 and apart >= 1e-3:
        assert abs(got.double().mean() / want.kl.mean() - 1).item() < 1e-4 + 4e-6 / apart


MEAN_CASES = [(64, a, 1.0, torch.float32) for a in (1e-3, 1e-2)] + [(64, 1e-2, 1.0, torch.bfloat16)]


@pytest.mark.parametrize(("rows", "apart", "w", "dtype"), [*MEAN_CASES, (32, 1e-2, 5.0, torch.float32)])
def test_the_batch_mean_of_k3_is_right_to_four_digits(
    triton_ops: Operations, rows: int, apart: float, w: float, dtype: torch.dtype
) -> None:
    """What a run logs and is penalised by: bf16 log-softmax is off by about its whole size here."""
    size = {"spread": 2.0, "apart": apart, "guidance_scale": w, "dtype": dtype, "kl": "k3", "sampled": True}
    arguments = problem(1, rows, 16_384, **size)  # type: ignore[arg-type]
    with torch.no_grad():
        got = triton_ops.token_statistics(**arguments, entropy=False).kl
        want = token_statistics(**in_float64(arguments), entropy=False).kl
    assert got is not None
    assert want is not None
    assert abs(got.double().mean().item() / want.mean().item() - 1) < 1e-4


@pytest.mark.parametrize("w", [1.0, 5.0])
@pytest.mark.parametrize("apart", [1e-4, 1e-3, 0.1, 3.0, 30.0])
def test_exact_kl_keeps_four_digits_at_any_distance(triton_ops: Operations, apart: float, w: float) -> None:
    arguments = problem(1, 4, 3000, spread=4.0, apart=apart, guidance_scale=w, kl="exact", sampled=True)
    got, want = triton_ops.token_statistics(**arguments), oracle(arguments)[0]
    assert_near(got.kl, want.kl, 1e-4, 1e-10)
    assert_near(got.log_ratio, want.log_ratio, 1e-4, 1e-6)


@pytest.mark.parametrize("kl", ["k3", "exact"])
def test_logits_of_80_and_rows_that_hardly_overlap(triton_ops: Operations, kl: str) -> None:
    row = torch.linspace(-80, 80, 3001)
    logits = torch.stack([row, row.flip(0), row - 200, torch.full_like(row, -75.0), row.where(row > 0, -80)])[None]
    arguments = {
        "logits": logits,
        "ids": torch.tensor([[0, 0, 3000, 1500, 3000]]),
        "ref_logits": logits.roll(1, dims=1) * torch.tensor([0.25, 1.0, 1.0, 1.0, -0.5])[:, None],
        "kl": kl,
    }
    got, want = triton_ops.token_statistics(**arguments), oracle(arguments)[0]
    assert_near(got.logp, want.logp, 1e-5, 1e-6)
    assert_near(got.log_ratio, want.log_ratio, 1e-5, 2e-5)
    assert_near(got.entropy, want.entropy, 1e-5, 2e-5)
    finite = want.kl < 1e30  # type: ignore[operator]
    assert_near(got.kl[finite], want.kl[finite], 1e-4, 2e-5)  # type: ignore[index]
    near = {**arguments, "ref_logits": logits * 0.9}
    gradients, right = answered(triton_ops.token_statistics, near)[1], oracle(near)[1]
    assert right["logits"].abs().max() > 1  # log ratios of up to 8 nats
    assert_gradients_near(gradients, right, 5e-5)


def test_equal_logits_are_uniform_and_ids_at_both_ends_are_found(triton_ops: Operations) -> None:
    for level in (0.0, -75.0, 80.0, 1e4):
        result = triton_ops.token_statistics(torch.full((1, 2, 3000), level), torch.tensor([[0, 2999]]))
        assert_near(result.logp, torch.full((1, 2), -math.log(3000)), 1e-6, 0.0)
        assert_near(result.entropy, torch.full((1, 2), math.log(3000)), 1e-6, 0.0)
    check(triton_ops, problem(1, 2, 3000, kl="exact") | {"ids": torch.tensor([[0, 2999]])})


@pytest.mark.parametrize("w", [1.0, 5.0])
@pytest.mark.parametrize("kl", KL_NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_policy_equal_to_its_reference_has_exactly_no_kl(
    triton_ops: Operations, w: float, kl: str, dtype: torch.dtype
) -> None:
    arguments = problem(2, 3, 2500, dtype=dtype, guidance_scale=w, apart=0.0, spread=8.0, kl=kl)
    result = triton_ops.token_statistics(**arguments)
    assert result.kl is not None
    assert result.log_ratio is not None
    assert result.kl.eq(0).all()
    assert result.log_ratio.eq(0).all()


def test_a_vocabulary_of_one_has_nothing_to_say(triton_ops: Operations) -> None:
    for kl in KL_NAMES:
        result, gradients = answered(triton_ops.token_statistics, problem(2, 3, 1, kl=kl))
        assert all(x is not None and x.eq(0).all() for x in result)
        assert gradients["logits"].eq(0).all()


@pytest.mark.parametrize("t", [0, 1])
def test_no_token_and_one(triton_ops: Operations, t: int) -> None:
    result, gradients = answered(triton_ops.token_statistics, problem(2, t, 7, kl="exact"))
    assert all(x is not None and x.shape == (2, t) for x in result)
    assert gradients["logits"].shape == (2, t, 7)
    if t:
        check(triton_ops, problem(2, t, 7, kl="exact"))


def test_masked_rows_get_a_gradient_of_exactly_zero(triton_ops: Operations) -> None:
    arguments = problem(2, 3, 3000, kl="exact")
    logits = arguments.pop("logits").requires_grad_()
    result = triton_ops.token_statistics(logits, **arguments)
    mask = torch.zeros(2, 3)  # nothing counts
    (gradient,) = torch.autograd.grad(sum((mask * x).sum() for x in result if x is not None), logits)  # type: ignore[arg-type]
    assert gradient.eq(0).all()


def test_strided_rows_and_a_transposed_vocabulary(triton_ops: Operations) -> None:
    wide = draw(4, 3, 2, 700, seed=1)
    tall = draw(2, 700, 3, seed=2)
    ids = draw_ids(4, 6, 700)[::2, 1::2]
    assert not ids.is_contiguous()
    for logits in (wide[::2, :, 1], tall.transpose(1, 2), wide[:1, :, 0].expand(2, 3, 700)):
        assert not logits.is_contiguous()
        check(triton_ops, {"logits": logits, "ids": ids, "ref_logits": wide[1::2, :, 0], "kl": "exact"})


@pytest.mark.parametrize("shared", ["logits", "unconditional"])
def test_the_gradient_may_not_take_the_place_of_overlapping_logits(triton_ops: Operations, shared: str) -> None:
    arguments = problem(2, 3, 50, guidance_scale=3.0)
    one = arguments[shared][:1].clone().requires_grad_()
    with pytest.raises(ValueError, match=rf"{shared} of shape \(2, 3, 50\) and strides \(0, 50, 1\)"):
        triton_ops.token_statistics(**arguments | {shared: one.expand(2, 3, 50)}, overwrite=True)
    windows = draw(70, seed=1).as_strided((2, 3, 50), (0, 1, 1) if shared == "logits" else (2, 1, 1)).requires_grad_()
    with pytest.raises(ValueError, match="overwrite=True"):
        triton_ops.token_statistics(**arguments | {shared: windows}, overwrite=True)
    apart = draw(3, 2, 90, seed=2).transpose(0, 1)[..., 40:].requires_grad_()  # strided, but each place its own
    triton_ops.token_statistics(**arguments | {shared: apart}, overwrite=True)


@pytest.mark.parametrize("guided", [False, True])
def test_the_gradient_may_take_the_place_of_the_logits_once(triton_ops: Operations, guided: bool) -> None:
    arguments = problem(2, 3, 2500, guidance_scale=3.0 if guided else 1.0, kl="exact")
    _, want = answered(triton_ops.token_statistics, arguments)
    own = {k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in arguments.items()}
    leaves = [own[k].requires_grad_() for k in want]
    result = triton_ops.token_statistics(**own, overwrite=True)
    weights = draw(4, 2, 3, seed=70)
    total = sum((w * x).sum() for w, x in zip(weights, result, strict=True) if x is not None)
    got = torch.autograd.grad(total, leaves, retain_graph=True)  # type: ignore[arg-type]
    for gradient, leaf, name in zip(got, leaves, want, strict=True):
        assert gradient.data_ptr() == leaf.data_ptr()
        assert gradient.equal(want[name])
    with pytest.raises(RuntimeError, match="overwrote"):
        torch.autograd.grad(total, leaves)  # type: ignore[arg-type]


def test_a_saved_graph_can_be_used_twice_and_in_parts(triton_ops: Operations) -> None:
    arguments = problem(2, 3, 700, kl="exact")
    logits = arguments.pop("logits").requires_grad_()
    result = triton_ops.token_statistics(logits, **arguments)
    parts = [torch.autograd.grad(x.sum(), logits, retain_graph=True)[0] for x in result if x is not None]
    total = sum(x.sum() for x in result if x is not None)
    first = torch.autograd.grad(total, logits, retain_graph=True)[0]  # type: ignore[arg-type]
    torch.testing.assert_close(torch.autograd.grad(total, logits)[0], first, rtol=0, atol=0)  # type: ignore[arg-type]
    torch.testing.assert_close(sum(parts), first, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kl", ["k1", "k2", "k3"])
def test_a_ready_reference_log_prob(triton_ops: Operations, kl: str) -> None:
    arguments = problem(2, 3, 700, kl=kl)
    del arguments["ref_logits"]
    check(triton_ops, arguments | {"ref_logp": -draw(2, 3, seed=5).abs()})


def test_what_is_not_asked_for_is_not_there(triton_ops: Operations) -> None:
    arguments = problem(2, 3, 9)
    alone = triton_ops.token_statistics(arguments["logits"], arguments["ids"], entropy=False)
    assert (alone.log_ratio, alone.kl, alone.entropy) == (None, None, None)
    without_kl = triton_ops.token_statistics(**arguments, kl=None)
    assert without_kl.kl is None
    assert without_kl.log_ratio is not None
    logging = triton_ops.token_statistics(arguments["logits"].requires_grad_(), arguments["ids"], entropy_grad=False)
    assert logging.entropy is not None
    assert not logging.entropy.requires_grad
    assert logging.logp.requires_grad


def test_the_unconditional_branch_gets_a_gradient_on_request_only(triton_ops: Operations) -> None:
    arguments = problem(2, 3, 700, guidance_scale=3.0) | {"unconditional_grad": False}
    c, u = arguments["logits"].requires_grad_(), arguments["unconditional"].requires_grad_()
    logp = triton_ops.token_statistics(**arguments).logp
    assert torch.autograd.grad(logp.sum(), (c, u), allow_unused=True)[1] is None


@settings(max_examples=25, deadline=None)
@given(
    n=st.integers(1, 2),
    t=st.integers(1, 3),
    v=st.integers(1, 70),
    spread=st.floats(0.1, 60),
    apart=st.floats(0, 3),
    temperature=st.floats(0.2, 3),
    w=st.sampled_from([1.0, 1.5, 5.0]),
    kl=st.sampled_from(KL_NAMES),
    seed=st.integers(0, 10**6),
)
def test_any_input_agrees_and_keeps_its_signs(triton_ops: Operations, **drawn: Any) -> None:
    shape = [drawn.pop(name) for name in ("n", "t", "v")]
    arguments = problem(*shape, guidance_scale=drawn.pop("w"), **drawn)
    got, want = triton_ops.token_statistics(**arguments), oracle(arguments)[0]
    largest = max(x.abs().max().item() for k, x in arguments.items() if k in ("logits", "unconditional"))
    slack = 1e-6 * (1 + arguments["guidance_scale"] * largest / arguments["temperature"])  # of the inputs' own rounding
    assert (got.logp <= 0).all()
    assert_near(got.logp, want.logp, 1e-5, slack)
    assert_near(got.log_ratio, want.log_ratio, 1e-5, slack)
    assert_near(got.entropy, want.entropy, 1e-5, slack)
    assert got.entropy is not None
    assert got.kl is not None
    assert (got.entropy >= 0).all()
    if arguments["kl"] != "k1":
        assert (got.kl >= 0).all()


def test_ids_out_of_range_are_named_or_give_nan(triton_ops: Operations) -> None:
    logits, ids = draw(2, 3, 5, seed=0), torch.tensor([[0, 1, 2], [3, 4, 5]])
    with pytest.raises(ValueError, match=r"values in \[0, 5\], expected \[0, 5\) for ids of shape \(2, 3\)"):
        triton_ops.token_statistics(logits, ids)
    unchecked = triton_ops.token_statistics(logits, ids, validate=False)
    assert unchecked.logp.isnan().tolist() == [[False] * 3, [False, False, True]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"logits": torch.zeros(2, 3, 5, dtype=torch.float64)}, "logits: dtype torch.float64.*kernels=torch"),
        ({"ref_logits": torch.zeros(2, 3, 6)}, r"ref_logits: shape \(2, 3, 6\), expected \(2, 3, 5\)"),
        ({"ids": torch.zeros(2, 4, dtype=torch.int64)}, r"ids: shape \(2, 4\), expected \(2, 3\)"),
        ({"kl": "exact", "ref_logp": torch.zeros(2, 3)}, "needs the reference's logits"),
        ({"guidance_scale": 2.0}, "unconditional branch is missing"),
    ],
)
def test_wrong_inputs_are_named(triton_ops: Operations, change: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {"logits": torch.zeros(2, 3, 5), "ids": torch.zeros(2, 3, dtype=torch.int64)}
    with pytest.raises(ValueError, match=message):
        triton_ops.token_statistics(**{**arguments, **change})


def test_the_oracle_of_these_tests_is_in_float64() -> None:
    arguments = in_float64(problem(1, 1, 3, guidance_scale=2.0))
    assert {x.dtype for x in arguments.values() if isinstance(x, torch.Tensor)} == {torch.float64, torch.int64}
