"""The chunked head on interpreted kernels: float64 logits as the oracle, and what it keeps in memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from kernels import Operations, head_statistics
from kernels.triton.heads import CHUNK_BYTES, chunk_tokens
from tests.kernels.problems import assert_near, draw, draw_ids
from tests.kernels.test_head import LargestRows, V

N, T, F = 3, 3, 16


def parts(vocabulary: int = 1200, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    """Arguments of head_statistics with everything that can be there."""
    shapes = {"features": (N, T, F), "weight": (vocabulary, F), "bias": (vocabulary,)}
    made: dict[str, Any] = {name: draw(*shape, seed=i, dtype=dtype) for i, (name, shape) in enumerate(shapes.items())}
    made["unconditional_features"] = draw(N, T, F, seed=7, dtype=dtype)
    made["ids"] = draw_ids(N, T, vocabulary)
    for name in ("features", "unconditional_features", "weight", "bias"):
        noise = draw(*made[name].shape, seed=20 + len(name), scale=0.02, dtype=dtype)
        made[f"ref_{name}"] = made[name] + noise
    return made


def double(arguments: dict[str, Any]) -> dict[str, Any]:
    return {k: v.double() if isinstance(v, Tensor) and v.is_floating_point() else v for k, v in arguments.items()}


def run(operation: Any, arguments: dict[str, Any], leaves: tuple[str, ...], **options: Any) -> tuple[Any, list[Tensor]]:
    arguments = {k: v.detach().clone().requires_grad_() if k in leaves else v for k, v in arguments.items()}
    result = operation(**arguments, **options)
    weights = draw(4, N, T, seed=50).to(result.logp.dtype)
    total = sum((w * x).sum() for w, x in zip(weights, result, strict=True) if x is not None)
    return result, list(torch.autograd.grad(total, [arguments[name] for name in leaves]))  # type: ignore[arg-type]


@pytest.mark.parametrize("chunk_size", [None, 4])
@pytest.mark.parametrize(("w", "kl"), [(1.0, "k3"), (3.0, "exact")])
@pytest.mark.parametrize("trained", [False, True])
def test_values_and_gradients(triton_ops: Operations, chunk_size: int | None, w: float, kl: str, trained: bool) -> None:
    arguments = parts() | {"guidance_scale": w, "kl": kl, "temperature": 0.9, "unconditional_grad": True}
    leaves = ("features", *(["unconditional_features"] if w != 1 else []), *(["weight", "bias"] if trained else []))
    got, got_gradients = run(triton_ops.head_statistics, arguments, leaves, chunk_size=chunk_size)
    want, want_gradients = run(head_statistics, double(arguments), leaves)
    for a, b in zip(got, want, strict=True):
        assert_near(a, b, 2e-5, 2e-5)
    for a, b in zip(got_gradients, want_gradients, strict=True):
        assert a.dtype == torch.float32
        assert_near(a, b, 1e-4, 1e-4 * b.abs().max().item())


@pytest.mark.parametrize("bias", [False, True])
def test_the_policys_own_head_serves_the_reference_and_a_ready_log_prob_stands_in(
    triton_ops: Operations, bias: bool
) -> None:
    arguments = parts()
    for name in ("ref_weight", "ref_bias", "ref_unconditional_features", "unconditional_features"):
        del arguments[name]
    arguments["bias"] = arguments["bias"] if bias else None
    shared = triton_ops.head_statistics(**arguments, kl="exact", chunk_size=4)
    want = head_statistics(**double(arguments), kl="exact")
    assert_near(shared.kl, want.kl, 1e-4, 1e-6)
    del arguments["ref_features"]
    ready = triton_ops.head_statistics(**arguments, ref_logp=want.logp.float() - 0.25, chunk_size=4)
    assert_near(ready.log_ratio, torch.full((N, T), -0.25), 0.0, 2e-5)


def test_half_precision_keeps_the_matrix_product_and_sums_in_float32(triton_ops: Operations) -> None:
    arguments = parts(dtype=torch.bfloat16)
    got, (got_gradient,) = run(triton_ops.head_statistics, arguments, ("features",))
    want, (want_gradient,) = run(head_statistics, arguments, ("features",))
    assert got.logp.dtype == torch.float32
    assert_near(got.logp, want.logp, 1e-5, 1e-5)
    assert got_gradient.dtype == torch.bfloat16
    assert_near(got_gradient, want_gradient, 0.02, 0.02 * want_gradient.abs().max().item())


def test_autocast_runs_the_product_in_its_dtype_forward_and_back(triton_ops: Operations) -> None:
    arguments = parts()
    with torch.autocast("cpu", torch.bfloat16):
        got, got_gradients = run(triton_ops.head_statistics, arguments, ("features", "weight"), kl="exact")
    want, want_gradients = run(head_statistics, double(arguments), ("features", "weight"), kl="exact")
    assert_near(got.logp, want.logp, 0.02, 0.05)
    for a, b in zip(got_gradients, want_gradients, strict=True):
        assert a.dtype == torch.float32
        assert_near(a, b, 0.0, 0.05 * b.abs().max().item())


@pytest.mark.parametrize("kl", ["k3", "exact"])
def test_no_more_than_a_chunk_of_logits_ever_exists(triton_ops: Operations, kl: str) -> None:
    features, reference = (draw(N, T, 1, seed=i).requires_grad_(i == 0) for i in range(2))
    weight, bias = draw(V, 1, seed=2), draw(V, seed=3)  # one feature: weight.T is not mistaken for rows
    kept: list[tuple[int, ...]] = []

    def remember(x: Tensor) -> Tensor:
        kept.append(tuple(x.shape))
        return x

    with LargestRows() as largest:
        with torch.autograd.graph.saved_tensors_hooks(remember, lambda x: x):
            result = triton_ops.head_statistics(
                features, weight, bias, draw_ids(N, T, V), ref_features=reference, kl=kl, chunk_size=4
            )
        result.logp.sum().backward()
    assert largest.rows == 4
    assert not [shape for shape in kept if len(shape) > 1 and shape[-1] == V]


def test_strided_inputs_of_one_rollout(triton_ops: Operations) -> None:
    wide = {k: v.repeat_interleave(2, dim=1)[:1, ::2] for k, v in parts().items() if k in ("features", "ids")}
    ref_logp = -draw(1, 2 * T, seed=9).abs()[:, ::2]
    arguments = {k: v for k, v in parts().items() if k in ("weight", "bias")} | wide | {"ref_logp": ref_logp}
    assert not arguments["ids"].is_contiguous()
    got, want = triton_ops.head_statistics(**arguments, chunk_size=2), head_statistics(**double(arguments))
    for a, b in zip(got, want, strict=True):
        assert_near(a, b, 1e-5, 1e-5)


def test_no_tokens_and_wrong_inputs(triton_ops: Operations) -> None:
    features = draw(2, 0, F, seed=0).requires_grad_()
    result = triton_ops.head_statistics(features, draw(7, F, seed=1), None, torch.zeros(2, 0, dtype=torch.int64))
    assert result.logp.shape == (2, 0)
    assert torch.autograd.grad(result.logp.sum(), features)[0].shape == (2, 0, F)
    with pytest.raises(ValueError, match=r"dtype torch.float64.*kernels=torch"):
        triton_ops.head_statistics(features.double(), draw(7, F, seed=1).double(), None, draw_ids(2, 0, 7))
    with pytest.raises(ValueError, match=r"weight: shape \(7, 9\), but features has"):
        triton_ops.head_statistics(features, draw(7, 9, seed=1), None, draw_ids(2, 0, 7))


@pytest.mark.parametrize(("vocabulary", "itemsize"), [(16_384, 2), (102_400, 2), (102_400, 4), (64, 4)])
def test_a_chunk_fits_the_cache_and_fills_the_matrix_units(vocabulary: int, itemsize: int) -> None:
    tokens = chunk_tokens(vocabulary, itemsize)
    assert tokens % 128 == 0
    assert tokens == 128 or tokens * vocabulary * itemsize <= CHUNK_BYTES
