"""What every operation from hidden states does first: check, mix the guidance, name the reference's head."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from kernels.checks import check_head, check_options


class HeadInputs(NamedTuple):
    """Features (N, T, F) as the last linear reads them, guidance mixed in, and the linears.

    `features` has the graph; the reference's have none and are None without a reference.
    """

    features: Tensor
    weight: Tensor
    bias: Tensor | None
    ids: Tensor
    ref_features: Tensor | None
    ref_weight: Tensor
    ref_bias: Tensor | None


def prepare_head(
    features: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    ids: Tensor,
    *,
    temperature: float,
    unconditional_features: Tensor | None,
    guidance_scale: float,
    unconditional_grad: bool,
    ref_features: Tensor | None,
    ref_weight: Tensor | None,
    ref_bias: Tensor | None,
    ref_unconditional_features: Tensor | None,
    ref_logp: Tensor | None,
    kl: str | None,
    chunk_size: int | None,
    validate: bool,
) -> HeadInputs:
    """Arguments as :func:`kernels.reference.head_statistics` describes them; raises as it does."""
    check_head(features, weight, bias, ids, unconditional_features, "features")
    if ref_weight is None:
        ref_weight, ref_bias = weight, bias if ref_bias is None else ref_bias
    if ref_features is not None:
        check_head(ref_features, ref_weight, ref_bias, ids, ref_unconditional_features, "ref_features")
        if ref_weight.shape[0] != weight.shape[0]:
            raise ValueError(f"ref_weight: shape {tuple(ref_weight.shape)}, but weight has {tuple(weight.shape)}")
    if chunk_size is not None and chunk_size < 1:
        raise ValueError(f"chunk_size={chunk_size}: expected at least 1, or None")
    check_options(
        ids,
        vocabulary=weight.shape[0],
        temperature=temperature,
        guided=guidance_scale != 1.0,
        unconditional=unconditional_features,
        reference=ref_features,
        ref_unconditional=ref_unconditional_features,
        ref_logp=ref_logp,
        kl=kl,
        validate=validate,
    )
    mixed = guide_features(features, unconditional_features, guidance_scale, unconditional_grad)
    ref_mixed = None
    if ref_features is not None:
        with torch.no_grad():
            ref_mixed = guide_features(ref_features, ref_unconditional_features, guidance_scale)
    return HeadInputs(mixed, weight, bias, ids, ref_mixed, ref_weight, ref_bias)


def as_autocast(inputs: HeadInputs) -> HeadInputs:
    """The inputs in the dtype that autocast would give the matrix product, where it is on."""
    device = inputs.features.device.type
    if not torch.is_autocast_enabled(device):
        return inputs
    dtype = torch.get_autocast_dtype(device)
    return HeadInputs(*(x.to(dtype) if x is not None and x.is_floating_point() else x for x in inputs))  # type: ignore[arg-type]


def guide(conditional: Tensor, unconditional: Tensor, scale: float) -> Tensor:
    """Classifier-free guidance ``u + w * (c - u)`` on logits, or on the features an affine head reads.

    Both of one shape; the result is float32 (float64 from float64).
    """
    c = conditional.to(sum_dtype(conditional))
    return torch.lerp(unconditional.to(c.dtype), c, scale)


def mix(x: Tensor, unconditional: Tensor | None, scale: float, unconditional_grad: bool) -> Tensor:
    """The guided input; `x` itself where guidance is off."""
    if scale == 1.0 or unconditional is None:
        return x
    return guide(x, unconditional if unconditional_grad else unconditional.detach(), scale)


def guide_features(x: Tensor, unconditional: Tensor | None, scale: float, unconditional_grad: bool = False) -> Tensor:
    """What an affine head reads under guidance, x (..., F), mixed and rounded to the dtype of x.

    The one place where guidance is mixed for a head, in training and in sampling: in half precision it rounds, and
    mixing the logits instead would round otherwise, each branch's by up to half a unit times the guidance scale.
    `x` itself where guidance is off; no gradient goes to `unconditional` unless `unconditional_grad`.
    """
    return mix(x, unconditional, scale, unconditional_grad).to(x.dtype)


def sum_dtype(x: Tensor) -> torch.dtype:
    """What is summed in: float64 for float64, else float32."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def flat(x: Tensor) -> Tensor:
    """x (N, T) as (N * T,), without graph and contiguous, as the kernels read it: also where N is 1 or x expanded."""
    return x.detach().reshape(-1).contiguous()


def chunks(tokens: int, size: int | None) -> Iterator[slice]:
    """Slices of at most `size` tokens that cover all of them; None: one slice. None at all without tokens."""
    size = size or tokens
    for start in range(0, tokens, size or 1):
        yield slice(start, min(start + size, tokens))


def product(x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor) -> Tensor:
    """x @ weight.T + bias into `out`, by the vendor's matrix product; only without a graph."""
    if bias is None:
        return torch.mm(x, weight.t(), out=out)
    return torch.addmm(bias, x, weight.t(), out=out)


class HeadGradient:
    """Gradients of the head's own parameters, summed over chunks in float32 where they are trained."""

    def __init__(self, weight: Tensor, bias: Tensor | None, want_weight: bool, want_bias: bool) -> None:
        self.weight = torch.zeros_like(weight, dtype=sum_dtype(weight)) if want_weight else None
        self.bias = torch.zeros_like(bias, dtype=sum_dtype(bias)) if bias is not None and want_bias else None

    def add(self, to_logits: Tensor, x: Tensor) -> None:
        """One chunk: gradient of its logits (R, V), and its features (R, F)."""
        if self.weight is not None:
            self.weight += to_logits.t() @ x
        if self.bias is not None:
            self.bias += to_logits.sum(0, dtype=self.bias.dtype)

    def like(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        """(of the weight, of the bias), in their parameters' dtypes; None where not trained."""
        return (
            None if self.weight is None else self.weight.to(weight.dtype),
            None if self.bias is None or bias is None else self.bias.to(bias.dtype),
        )
