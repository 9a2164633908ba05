"""What every implementation of the operations checks before it starts: shapes, ids, options that contradict."""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.kl import KL_NAMES

LOGP_OF = ("sampled", "full")


def check_logits(logits: Tensor, ids: Tensor, **others: Tensor | None) -> None:
    """Raise ValueError unless logits are (N, T, V), ids (N, T) and all the others shaped as the logits."""
    if logits.dim() != 3 or not logits.is_floating_point():
        raise ValueError(f"logits: {logits.dtype} of shape {tuple(logits.shape)}, expected floating (N, T, V)")
    _check_shape("ids", ids, tuple(logits.shape[:2]), "logits", logits)
    for name, value in others.items():
        if value is not None:
            _check_shape(name, value, tuple(logits.shape), "logits", logits)


def check_head(
    features: Tensor, weight: Tensor, bias: Tensor | None, ids: Tensor, unconditional: Tensor | None, name: str
) -> None:
    """Raise ValueError unless features (N, T, F), weight (V, F), bias (V,), ids (N, T) fit together."""
    if features.dim() != 3 or not features.is_floating_point():
        raise ValueError(f"{name}: {features.dtype} of shape {tuple(features.shape)}, expected floating (N, T, F)")
    _check_shape("ids", ids, tuple(features.shape[:2]), name, features)
    if weight.dim() != 2 or weight.shape[1] != features.shape[-1]:
        raise ValueError(f"weight: shape {tuple(weight.shape)}, but {name} has {tuple(features.shape)}")
    if bias is not None:
        _check_shape("bias", bias, (weight.shape[0],), "weight", weight)
    if unconditional is not None:
        _check_shape(f"unconditional {name}", unconditional, tuple(features.shape), name, features)


def check_terms(
    ids: Tensor, advantages: Tensor, token_weights: Tensor, old_logp: Tensor | None, correction: Tensor | None
) -> None:
    """Raise ValueError unless advantages are (N,) and all the others shaped as the ids (N, T)."""
    _check_shape("advantages", advantages, (ids.shape[0],), "ids", ids)
    for name, value in (("token_weights", token_weights), ("old_logp", old_logp), ("correction", correction)):
        if value is not None:
            _check_shape(name, value, tuple(ids.shape), "ids", ids)


def _check_shape(name: str, value: Tensor, expected: tuple[int, ...], other: str, beside: Tensor) -> None:
    if tuple(value.shape) != expected:
        raise ValueError(
            f"{name}: shape {tuple(value.shape)}, expected {expected}, as {other} has {tuple(beside.shape)}"
        )


def check_options(
    ids: Tensor,
    *,
    vocabulary: int,
    temperature: float,
    guided: bool,
    unconditional: Tensor | None,
    reference: Tensor | None,
    ref_unconditional: Tensor | None,
    ref_logp: Tensor | None,
    kl: str | None,
    validate: bool = True,
) -> None:
    """Raise ValueError for ids out of range and for options that contradict each other.

    validate: look at the ids' values, too, which on a GPU waits for them.
    """
    if ids.dtype != torch.int64:
        raise ValueError(f"ids: dtype {ids.dtype}, expected torch.int64")
    if validate and ids.numel():
        low, high = (int(x) for x in torch.aminmax(ids))
        if low < 0 or high >= vocabulary:
            raise ValueError(
                f"ids: values in [{low}, {high}], expected [0, {vocabulary}) for ids of shape {tuple(ids.shape)}"
            )
    if not temperature > 0:
        raise ValueError(f"temperature={temperature}: expected a positive number")
    if guided and unconditional is None:
        raise ValueError("guidance_scale is not 1: the unconditional branch is missing")
    if guided and reference is not None and ref_unconditional is None:
        raise ValueError("guidance_scale is not 1: the reference's unconditional branch is missing")
    if kl is not None and kl not in KL_NAMES:
        raise ValueError(f"kl={kl!r}: expected one of {', '.join(KL_NAMES)}, or None")
    if kl == "exact" and reference is None:
        raise ValueError(
            "kl='exact' sums over the vocabulary: it needs the reference's logits or features, not ref_logp"
        )
    if reference is not None and ref_logp is not None:
        raise ValueError("two references: give either the reference's logits or features, or ref_logp")
    if ref_logp is not None and ref_logp.shape != ids.shape:
        raise ValueError(f"ref_logp: shape {tuple(ref_logp.shape)}, expected {tuple(ids.shape)}, the shape of ids")


def check_sampling(
    logits: Tensor,
    uniform: Tensor,
    *,
    unconditional: Tensor | None,
    guidance_scale: float,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    logp_of: str,
    validate: bool,
) -> None:
    """Raise ValueError unless logits are (N, V), uniform (N,) float64 in [0, 1) and the options in their ranges.

    validate: look at the uniforms' values, too, which on a GPU waits for them.
    """
    if logits.dim() != 2 or not logits.is_floating_point() or not logits.shape[-1]:
        raise ValueError(f"logits: {logits.dtype} of shape {tuple(logits.shape)}, expected floating (N, V)")
    if unconditional is not None:
        _check_shape("unconditional", unconditional, tuple(logits.shape), "logits", logits)
    _check_shape("uniform", uniform, tuple(logits.shape[:1]), "logits", logits)
    if uniform.dtype != torch.float64:
        raise ValueError(f"uniform: dtype {uniform.dtype}, expected torch.float64")
    if guidance_scale != 1.0 and unconditional is None:
        raise ValueError(f"guidance_scale={guidance_scale}: the unconditional branch is missing")
    if not 0 < temperature < float("inf"):
        raise ValueError(f"temperature={temperature}: expected a positive number")
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k={top_k}: expected at least 1, or None for the whole vocabulary")
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f"top_p={top_p}: expected a share in (0, 1], or None for the whole vocabulary")
    if logp_of not in LOGP_OF:
        raise ValueError(f"logp_of={logp_of!r}: expected one of {', '.join(LOGP_OF)}")
    if validate and uniform.numel():
        low, high = (float(x) for x in torch.aminmax(uniform))
        if not (low >= 0 and high < 1):
            raise ValueError(
                f"uniform: values in [{low}, {high}], expected [0, 1) for uniforms of shape {tuple(uniform.shape)}"
            )


def check_draws(out: tuple[Tensor, ...], logits: Tensor) -> None:
    """Raise ValueError unless `out` has room for ids (N,) int64 and three (N,) float32, contiguous, beside logits."""
    rows = tuple(logits.shape[:1])
    for name, x in zip(("ids", "logp", "conditional_logp", "entropy"), out, strict=True):
        dtype = torch.int64 if name == "ids" else torch.float32
        if tuple(x.shape) != rows or x.dtype != dtype or x.device != logits.device or not x.is_contiguous():
            raise ValueError(
                f"out.{name}: {x.dtype} of shape {tuple(x.shape)} and strides {x.stride()} on {x.device}, expected "
                f"contiguous {dtype} {rows} on {logits.device}, as logits has {tuple(logits.shape)}"
            )
