"""What every implementation of the operations checks before it starts: shapes, ids, options that contradict."""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.kl import KL_NAMES


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
