"""Inputs for the kernels' tests, and the float64 oracle that answers for them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from kernels import TokenStatistics, token_statistics

TENSORS = ("logits", "unconditional", "ref_logits", "ref_unconditional")


def draw(*shape: int, seed: int, scale: float = 1.0, dtype: torch.dtype = torch.float32) -> Tensor:
    """Normal numbers; the same for every dtype, up to rounding."""
    return (torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * scale).to(dtype)


def draw_ids(n: int, t: int, v: int, seed: int = 0) -> Tensor:
    """Uniform tokens."""
    return torch.randint(v, (n, t), generator=torch.Generator().manual_seed(1000 + seed))


def problem(
    n: int,
    t: int,
    v: int,
    *,
    dtype: torch.dtype = torch.float32,
    guidance_scale: float = 1.0,
    spread: float = 3.0,
    apart: float = 0.1,
    seed: int = 0,
    sampled: bool = False,
    **options: Any,
) -> dict[str, Any]:
    """Keyword arguments of token_statistics: a policy and a reference whose logits differ by about `apart`.

    sampled: tokens are drawn from the policy, as in training; else from all alike, however unlikely.
    """
    logits, branch = (draw(n, t, v, seed=seed + i, scale=spread) for i in range(2))
    made: dict[str, Any] = {
        "logits": logits.to(dtype),
        "ids": draw_ids(n, t, v, seed),
        "ref_logits": (logits + draw(n, t, v, seed=seed + 2, scale=apart)).to(dtype),
        "guidance_scale": guidance_scale,
    }
    if guidance_scale != 1.0:
        made["unconditional"] = branch.to(dtype)
        made["ref_unconditional"] = (branch + draw(n, t, v, seed=seed + 3, scale=apart)).to(dtype)
        made["unconditional_grad"] = True
    if sampled:
        mixed = logits if guidance_scale == 1.0 else branch + guidance_scale * (logits - branch)
        chances = (mixed.double() / options.get("temperature", 1.0)).softmax(-1).flatten(0, 1)
        made["ids"] = torch.multinomial(chances, 1, generator=torch.Generator().manual_seed(seed)).view(n, t)
    return {**made, **options}


def in_float64(arguments: dict[str, Any]) -> dict[str, Any]:
    """The same question, put to the oracle."""
    return {k: v.double() if isinstance(v, Tensor) and v.is_floating_point() else v for k, v in arguments.items()}


def answered(
    operation: Callable[..., TokenStatistics], arguments: dict[str, Any], *, seed: int = 70, **options: Any
) -> tuple[TokenStatistics, dict[str, Tensor]]:
    """Statistics and the gradients of a sum in which every statistic of every token weighs differently."""
    arguments = {k: v.detach().requires_grad_() if k in TENSORS else v for k, v in arguments.items()}
    result = operation(**arguments, **options)
    weights = draw(4, *result.logp.shape, seed=seed).to(result.logp.dtype)
    total = sum((w * x).sum() for w, x in zip(weights, result, strict=True) if x is not None)
    leaves = [name for name in ("logits", "unconditional") if name in arguments]
    gradients = torch.autograd.grad(total, [arguments[name] for name in leaves])  # type: ignore[arg-type]
    return result, dict(zip(leaves, gradients, strict=True))


def oracle(arguments: dict[str, Any], **options: Any) -> tuple[TokenStatistics, dict[str, Tensor]]:
    """What is right: plain torch in float64 on the very same inputs."""
    return answered(token_statistics, in_float64(arguments), **options)


def assert_near(got: Tensor | None, want: Tensor | None, rtol: float, atol: float) -> None:
    """Close elementwise, in float64."""
    assert (got is None) == (want is None)
    if got is not None and want is not None:
        torch.testing.assert_close(got.double(), want.double(), rtol=rtol, atol=atol)


def assert_gradients_near(got: dict[str, Tensor], want: dict[str, Tensor], rtol: float) -> None:
    """Close to the largest entry's `rtol`, and no entry further off than that share of itself plus a little."""
    assert got.keys() == want.keys()
    for name in got:
        largest = want[name].abs().max().item() if want[name].numel() else 0.0
        torch.testing.assert_close(got[name].double(), want[name], rtol=rtol, atol=rtol * largest)
