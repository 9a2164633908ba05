"""The one-pass head against autograd through the algorithms' own losses: the three operations are one.

For every variant in src/algorithms: its loss from token statistics of stored logits in float64 is the oracle;
interpreted row kernels (1), the chunked head (2) and, where the objective has a closed form, the one-pass head
in torch and in Triton (3) must give the same loss, gradient and metrics.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from kernels import Objective, OnePass, Operations, head_statistics, one_pass_head, token_statistics
from kernels.one_pass import rows_in_torch
from kernels.triton.heads import one_pass_chunk
from src.algorithms import Algorithm, LossInputs, count, load, names, normaliser, token_weights
from tests.kernels.problems import assert_near, draw
from tests.kernels.test_triton_head import N, T, double, parts

CLIP = {"clip_low": 0.1, "clip_high": 0.12}


def known(arguments: dict[str, Any], on_policy: bool) -> dict[str, Any]:
    """Advantages, mask (one row off), old log-probs that clip on either side, correction."""
    logp = head_statistics(**double(arguments), kl=None).logp
    mask = torch.rand(N, T, generator=torch.Generator().manual_seed(5)) < 0.8
    mask[1] = False
    moved = draw(N, T, seed=32, scale=0.4).double() + torch.tensor([[0.4], [0.0], [-0.4]])  # whole sequences, too
    return {
        "advantages": draw(N, seed=31),
        "mask": mask,
        "old_logp": None if on_policy else (logp + moved).float(),
        "correction": None if on_policy else draw(N, T, seed=33, scale=0.3).exp(),
    }


def by_autograd(
    algorithm: Algorithm, statistics: Any, terms: dict[str, Any], beta: float, bonus: float, z: float
) -> Any:
    dtype = statistics.logp.dtype
    inputs = LossInputs(
        logp=statistics.logp,
        kl=statistics.kl,
        entropy=statistics.entropy,
        **{k: v if v is None or v.dtype == torch.bool else v.to(dtype) for k, v in terms.items()},
    )
    return algorithm.loss(inputs, normaliser=z, beta=beta, entropy_bonus=bonus, **CLIP)


def from_logits(operation: Any, arguments: dict[str, Any], kl: str) -> Any:
    """Statistics of stored logits: op 1."""

    def logits(features: str, weight: str, bias: str) -> Tensor:
        return torch.nn.functional.linear(arguments[features], arguments[weight], arguments[bias])

    return operation(
        logits("features", "weight", "bias"),
        arguments["ids"],
        temperature=arguments["temperature"],
        unconditional=logits("unconditional_features", "weight", "bias"),
        guidance_scale=arguments["guidance_scale"],
        ref_logits=logits("ref_features", "ref_weight", "ref_bias"),
        ref_unconditional=logits("ref_unconditional_features", "ref_weight", "ref_bias"),
        kl=kl,
    )


@pytest.mark.parametrize("name", names())
@pytest.mark.parametrize(("kl", "w", "on_policy"), [("k3", 1.0, False), ("exact", 3.0, False), ("k2", 3.0, True)])
def test_all_operations_are_one_for_every_variant(
    triton_ops: Operations, name: str, kl: str, w: float, on_policy: bool
) -> None:
    algorithm = load(name)
    beta, bonus = 0.05, 0.01
    arguments = parts(700) | {"temperature": 0.9, "guidance_scale": w}
    terms = known(arguments, on_policy)
    z = normaliser(algorithm.aggregation, {"image": count(terms["mask"], T)})

    def gradient(loss: Tensor, features: Tensor) -> Tensor:
        return torch.autograd.grad(loss, features)[0]

    def leaf(values: dict[str, Any]) -> dict[str, Any]:
        return values | {"features": values["features"].detach().clone().requires_grad_()}

    exact = leaf(double(arguments))
    want = by_autograd(algorithm, from_logits(token_statistics, exact, kl), terms, beta, bonus, z)
    want_gradient = gradient(want.loss, exact["features"])
    if not on_policy:
        assert want.metrics["ratio_deviation_max"] > 0.12  # the case does clip

    closed = algorithm.closed_form
    assert (closed is not None) == algorithm.per_token
    for op in ("logits", "head", "one pass in torch", "one pass in triton"):
        own = leaf(arguments)
        if op.startswith("one pass"):
            if closed is None:
                continue
            result = triton_ops.one_pass_head if op.endswith("triton") else one_pass_head
            objective = Objective(closed, beta=beta, kl=kl, entropy_bonus=bonus, **CLIP)
            weights = token_weights(terms["mask"], algorithm.aggregation)
            options = {k: v for k, v in terms.items() if k != "mask"}
            loss, statistics = result(
                **own, objective=objective, token_weights=weights, normaliser=z, chunk_size=4, **options
            )
            assert not any(x.requires_grad for x in statistics if x is not None)
        else:
            statistics = (
                from_logits(triton_ops.token_statistics, own, kl)
                if op == "logits"
                else triton_ops.head_statistics(**own, kl=kl, chunk_size=4)
            )
            loss = by_autograd(algorithm, statistics, terms, beta, bonus, z).loss
        assert_near(loss, want.loss, 1e-5, 1e-5)
        got_gradient = gradient(loss, own["features"])
        assert_near(got_gradient, want_gradient, 1e-4, 5e-5 * want_gradient.abs().max().item())
        assert got_gradient[1].eq(0).all()  # the row that does not count
        metrics = by_autograd(algorithm, statistics, terms, beta, bonus, z).metrics
        for metric, value in metrics.items():
            assert_near(value, want.metrics[metric], 1e-4, 1e-4)


def compute(operation: Any = one_pass_head, **changes: Any) -> tuple[OnePass, dict[str, Tensor]]:
    """A one-pass head with trained weight and bias; its result and the leaves."""
    arguments = parts(40) | {"objective": Objective(beta=0.1, entropy_bonus=0.05), "normaliser": 9.0}
    arguments |= {"advantages": draw(N, seed=31), "token_weights": torch.ones(N, T)} | changes
    leaves = {k: arguments[k].detach().clone().requires_grad_() for k in ("features", "weight", "bias")}
    return operation(**(arguments | leaves)), leaves


@pytest.mark.parametrize("kl", ["k1", "k2", "k3", "exact"])
@pytest.mark.parametrize("w", [1.0, 3.0])
def test_the_closed_form_in_float64_is_autograds_gradient_to_ten_digits(kl: str, w: float) -> None:
    arguments = double(parts(40)) | {"temperature": 0.7, "guidance_scale": w}
    leaves = {k: arguments[k].requires_grad_() for k in ("features", "weight", "bias")}
    terms = {k: v.double() if v is not None else v for k, v in known(arguments, False).items() if k != "mask"}
    weights = torch.rand(N, T, generator=torch.Generator().manual_seed(8), dtype=torch.float64)
    objective = Objective(beta=0.1, kl=kl, entropy_bonus=0.05)
    got = one_pass_head(**arguments, objective=objective, token_weights=weights, normaliser=7.0, chunk_size=4, **terms)
    statistics = head_statistics(**arguments, kl=kl)
    inputs = LossInputs(logp=statistics.logp, mask=torch.ones(N, T, dtype=torch.bool), **terms)
    surrogate = load("grpo").surrogate(inputs, 0.2, 0.2).value * terms["correction"]
    assert statistics.kl is not None
    assert statistics.entropy is not None
    want = -(weights * (surrogate - 0.1 * statistics.kl + 0.05 * statistics.entropy)).sum() / 7.0
    torch.testing.assert_close(got.loss, want, rtol=1e-10, atol=1e-12)
    for a, b in zip(
        torch.autograd.grad(got.loss, list(leaves.values())),
        torch.autograd.grad(want, list(leaves.values())),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def test_a_trained_head_gets_its_gradient_from_triton_too(triton_ops: Operations) -> None:
    got, got_leaves = compute(triton_ops.one_pass_head, chunk_size=4)
    want, want_leaves = compute()
    assert_near(got.loss, want.loss, 1e-5, 1e-6)
    got.loss.backward()
    want.loss.backward()
    for name, leaf in got_leaves.items():
        expected = want_leaves[name].grad
        assert expected is not None
        assert_near(leaf.grad, expected, 1e-4, 1e-5 * expected.abs().max().item())


@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_the_loss_may_be_scaled_and_gone_through_twice(triton_ops: Operations, backend: str) -> None:
    (loss, _), leaves = compute(triton_ops.one_pass_head if backend == "triton" else one_pass_head)
    once = torch.autograd.grad(loss, leaves["features"], retain_graph=True)[0]
    again = torch.autograd.grad(3.0 * loss, leaves["features"])[0]
    torch.testing.assert_close(again, 3.0 * once)


def test_the_kept_gradient_may_be_handed_out_once() -> None:
    (plain, _), plain_leaves = compute()
    (loss, _), leaves = compute(once=True)
    want = torch.autograd.grad(3.0 * plain, plain_leaves["features"])[0]
    torch.testing.assert_close(torch.autograd.grad(3.0 * loss, leaves["features"], retain_graph=True)[0], want)
    with pytest.raises(RuntimeError, match="once=True"):
        torch.autograd.grad(loss, leaves["features"])


@pytest.mark.parametrize("rows", [rows_in_torch, one_pass_chunk])
def test_strided_and_expanded_inputs_of_one_rollout(rows: Any) -> None:
    """Flattening a single row leaves its strides alone: the kernels must not take them for contiguous."""
    wide = {
        k: v.repeat_interleave(2, dim=1)[:1, ::2] for k, v in parts(40).items() if k.endswith("features") or k == "ids"
    }
    weights, old = (draw(1, 2 * T, seed=i).abs()[:, ::2] for i in (3, 4))
    assert not wide["ids"].is_contiguous()
    changes = {"advantages": draw(1, seed=31), "token_weights": weights, "old_logp": -old}
    got, got_leaves = compute(**wide, **changes, rows=rows, chunk_size=2)
    want, want_leaves = compute(**{k: v.contiguous() for k, v in (wide | changes).items()})
    assert_near(got.loss, want.loss, 1e-5, 1e-6)
    gradients = [torch.autograd.grad(r.loss, x["features"])[0] for r, x in ((got, got_leaves), (want, want_leaves))]
    assert_near(*gradients, 1e-4, 1e-6)


def test_without_gradients_only_the_loss_is_computed() -> None:
    asked: list[bool] = []

    def rows(chunk: Any, want_gradient: bool) -> Any:
        asked.append(want_gradient)
        return rows_in_torch(chunk, want_gradient)

    with torch.no_grad():
        (loss, _), _ = compute(rows=rows, chunk_size=4)
    assert asked == [False] * math.ceil(N * T / 4)
    assert not loss.requires_grad


def test_the_normaliser_does_not_reach_half_precision() -> None:
    """Weights of 1e-6 a token would vanish in float16 gradients; kept a power of two away they do not."""
    arguments = parts(40, torch.float16)
    options = {"objective": Objective(beta=0.0), "advantages": torch.ones(N), "token_weights": torch.ones(N, T)}
    gradients = []
    for normaliser_ in (2.0**4, 2.0**24):
        leaf = arguments["features"].detach().clone().requires_grad_()
        loss = one_pass_head(**(arguments | {"features": leaf}), normaliser=normaliser_, **options).loss
        gradients.append(torch.autograd.grad(loss * normaliser_, leaf)[0])
    assert gradients[0].abs().max() > 0
    assert gradients[0].equal(gradients[1])


def test_an_infinite_normaliser_adds_nothing(triton_ops: Operations) -> None:
    for operation in (one_pass_head, triton_ops.one_pass_head):
        (loss, _), leaves = compute(operation, normaliser=math.inf)
        assert loss.item() == 0
        assert torch.autograd.grad(loss, leaves["features"])[0].eq(0).all()


@pytest.mark.parametrize("rows", [rows_in_torch, one_pass_chunk])
def test_no_more_than_a_chunk_at_a_time(rows: Any) -> None:
    seen: list[int] = []

    def watch(chunk: Any, want_gradient: bool) -> Any:
        seen.append(chunk.logits.shape[0])
        return rows(chunk, want_gradient)

    compute(rows=watch, chunk_size=4)
    assert seen == [4, 4, 1]


def test_no_tokens(triton_ops: Operations) -> None:
    empty = {k: v[:, :0] for k, v in parts(40).items() if k.endswith("features") or k == "ids"}
    for operation in (one_pass_head, triton_ops.one_pass_head):
        (loss, statistics), leaves = compute(operation, **empty, token_weights=torch.ones(N, 0))
        assert loss.item() == 0
        assert statistics.logp.shape == (N, 0)
        assert leaves["weight"].grad is None


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Objective("sequence"), "surrogate='sequence': expected one of reinforce, clipped, weight_clipped"),
        (lambda: Objective(kl="k4"), "kl='k4'"),
        (lambda: Objective(beta=0.1, kl=None), "beta=0.1 weights a KL"),
        (lambda: Objective(entropy_bonus=0.1, entropy=False), "entropy_bonus=0.1"),
        (lambda: compute(advantages=torch.ones(N + 1)), r"advantages: shape \(4,\), expected \(3,\)"),
        (lambda: compute(token_weights=torch.ones(N)), r"token_weights: shape \(3,\), expected \(3, 3\)"),
        (lambda: compute(old_logp=torch.ones(N, 1)), r"old_logp: shape \(3, 1\)"),
        (lambda: compute(normaliser=0.0), "normaliser=0.0"),
        (lambda: compute(ref_features=None), "beta=0.1 weights a KL, but there is no reference"),
    ],
)
def test_wrong_inputs_are_named(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
