"""head_statistics against token_statistics of logits made by hand, and what it keeps in memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from kernels import TokenStatistics, head_statistics, token_statistics

N, T, F, V = 3, 5, 6, 11


def draw(*shape: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.fixture
def parts() -> dict[str, Tensor]:
    shapes = {"c": (N, T, F), "u": (N, T, F), "rc": (N, T, F), "ru": (N, T, F), "weight": (V, F), "bias": (V,)}
    shapes |= {"ref_weight": (V, F), "ref_bias": (V,)}
    made = {name: draw(*shape, seed=i).requires_grad_() for i, (name, shape) in enumerate(shapes.items())}
    return made | {"ids": torch.randint(V, (N, T), generator=torch.Generator().manual_seed(99))}


def total(result: TokenStatistics) -> Tensor:
    """A sum in which every statistic of every token counts differently."""
    weights = draw(4, N, T, seed=50)
    return sum((w * x).sum() for w, x in zip(weights, result, strict=True) if x is not None)  # type: ignore[return-value]


def from_logits(p: dict[str, Tensor], w: float, kl: str, bias: bool, own_reference: bool) -> TokenStatistics:
    b = p["bias"] if bias else 0
    rw, rb = (p["ref_weight"], p["ref_bias"]) if own_reference else (p["weight"], b)
    return token_statistics(
        p["c"] @ p["weight"].T + b,
        p["ids"],
        temperature=0.9,
        unconditional=p["u"] @ p["weight"].T + b,
        guidance_scale=w,
        unconditional_grad=True,
        ref_logits=p["rc"] @ rw.T + rb,
        ref_unconditional=p["ru"] @ rw.T + rb,
        kl=kl,
    )


@pytest.mark.parametrize("chunk_size", [None, 1, 4, 100])
@pytest.mark.parametrize("own_reference", [False, True])
@pytest.mark.parametrize(("w", "bias", "kl"), [(1.0, True, "k3"), (3.0, True, "exact"), (3.0, False, "k3")])
def test_values_and_gradients_equal_those_of_stored_logits(
    parts: dict[str, Tensor], chunk_size: int | None, own_reference: bool, w: float, bias: bool, kl: str
) -> None:
    p = parts
    got = head_statistics(
        p["c"],
        p["weight"],
        p["bias"] if bias else None,
        p["ids"],
        temperature=0.9,
        unconditional_features=p["u"],
        guidance_scale=w,
        unconditional_grad=True,
        ref_features=p["rc"],
        ref_weight=p["ref_weight"] if own_reference else None,
        ref_bias=p["ref_bias"] if own_reference else None,
        ref_unconditional_features=p["ru"],
        kl=kl,
        chunk_size=chunk_size,
    )
    want = from_logits(p, w, kl, bias, own_reference)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b)
    leaves = [p["c"], p["weight"], *([p["u"]] if w != 1 else []), *([p["bias"]] if bias else [])]
    for a, b in zip(torch.autograd.grad(total(got), leaves), torch.autograd.grad(total(want), leaves), strict=True):
        torch.testing.assert_close(a, b)


def test_a_ready_reference_is_cut_into_the_same_chunks(parts: dict[str, Tensor]) -> None:
    p = parts
    ref_logp = -draw(N, T, seed=70).abs()
    got = head_statistics(p["c"], p["weight"], p["bias"], p["ids"], ref_logp=ref_logp, entropy=False, chunk_size=4)
    want = token_statistics(p["c"] @ p["weight"].T + p["bias"], p["ids"], ref_logp=ref_logp, entropy=False)
    torch.testing.assert_close(got.kl, want.kl)
    torch.testing.assert_close(got.log_ratio, ref_logp - want.logp)
    assert got.entropy is None


@pytest.mark.parametrize("chunk_size", [None, 4])
def test_an_entropy_for_the_logs_has_no_graph_and_the_others_keep_theirs(
    parts: dict[str, Tensor], chunk_size: int | None
) -> None:
    p = parts
    got = head_statistics(p["c"], p["weight"], None, p["ids"], entropy_grad=False, chunk_size=chunk_size)
    want = token_statistics(p["c"] @ p["weight"].T, p["ids"])
    assert got.entropy is not None
    assert not got.entropy.requires_grad
    torch.testing.assert_close(got.entropy, want.entropy)
    gradients = [torch.autograd.grad(x.logp.sum(), p["c"])[0] for x in (got, want)]
    torch.testing.assert_close(gradients[0], gradients[1])


def test_a_frozen_head_gets_no_gradient_and_the_features_do(parts: dict[str, Tensor]) -> None:
    weight, bias = parts["weight"].detach(), parts["bias"].detach()
    total(head_statistics(parts["c"], weight, bias, parts["ids"], chunk_size=4)).backward()
    assert weight.grad is None
    assert parts["c"].grad is not None


class LargestRows(TorchDispatchMode):
    """Remembers the largest number of rows of width V that any operation returned."""

    rows = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for x in out if isinstance(out, tuple | list) else (out,):
            if isinstance(x, Tensor) and x.dim() and x.shape[-1] == V:
                self.rows = max(self.rows, x.numel() // V)
        return out


@pytest.mark.parametrize("chunk_size", [2, 4, 7])
def test_no_more_than_chunk_size_rows_of_logits_ever_exist(parts: dict[str, Tensor], chunk_size: int) -> None:
    features = parts["c"].detach()[..., :1].clone().requires_grad_()  # one feature: weight.T is not mistaken for rows
    weight, bias, reference = parts["weight"].detach()[:, :1], parts["bias"].detach(), parts["rc"].detach()[..., :1]
    kept: list[tuple[int, ...]] = []

    def remember(x: Tensor) -> Tensor:
        kept.append(tuple(x.shape))
        return x

    with LargestRows() as largest:
        with torch.autograd.graph.saved_tensors_hooks(remember, lambda x: x):
            result = head_statistics(
                features, weight, bias, parts["ids"], ref_features=reference, kl="exact", chunk_size=chunk_size
            )
        total(result).backward()
    assert largest.rows == chunk_size  # forward and backward; the probe did see logits
    assert not [shape for shape in kept if len(shape) > 1 and shape[-1] == V]  # nor are they kept between the two


def test_half_precision_features_keep_their_matrix_product_and_sum_in_float32() -> None:
    features, weight = draw(N, T, F, seed=0).bfloat16(), draw(V, F, seed=1).bfloat16()
    ids = torch.zeros(N, T, dtype=torch.int64)
    result = head_statistics(features, weight, None, ids)
    want = token_statistics(features @ weight.T, ids)
    assert result.logp.dtype == torch.float32
    torch.testing.assert_close(result.logp, want.logp, rtol=0, atol=0)


def test_no_tokens() -> None:
    features = draw(2, 0, F, seed=0)
    result = head_statistics(features, draw(V, F, seed=1), None, torch.zeros(2, 0, dtype=torch.int64), chunk_size=4)
    assert result.logp.shape == (2, 0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"features": torch.zeros(2, 3)}, r"features: .*\(2, 3\), expected floating \(N, T, F\)"),
        ({"weight": torch.zeros(5, 7)}, r"weight: shape \(5, 7\), but features has \(2, 3, 4\)"),
        ({"bias": torch.zeros(4)}, r"bias: shape \(4,\), expected \(5,\)"),
        ({"ids": torch.zeros(2, 2, dtype=torch.int64)}, r"ids: shape \(2, 2\), expected \(2, 3\)"),
        ({"ids": torch.full((2, 3), 5)}, r"expected \[0, 5\)"),
        ({"unconditional_features": torch.zeros(2, 3, 5), "guidance_scale": 2.0}, r"\(2, 3, 5\), expected \(2, 3, 4\)"),
        ({"ref_features": torch.zeros(2, 3, 4), "ref_weight": torch.zeros(6, 4)}, r"ref_weight: shape \(6, 4\)"),
        ({"chunk_size": 0}, "chunk_size=0"),
        ({"guidance_scale": 2.0}, "unconditional branch is missing"),
        ({"kl": "exact", "ref_logp": torch.zeros(2, 3)}, "needs the reference's logits or features"),
    ],
)
def test_wrong_inputs_are_named(change: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {
        "features": torch.zeros(2, 3, 4),
        "weight": torch.zeros(5, 4),
        "bias": None,
        "ids": torch.zeros(2, 3, dtype=torch.int64),
    }
    with pytest.raises(ValueError, match=message):
        head_statistics(**{**arguments, **change})
