"""The linear layers of a decode step: one product for those that read the same input, with LoRA applied separately.

Three forms of the same weights:

- **in place** (bf16, or on a GPU): the trained tensors themselves, at their addresses. The weights of a group
  (query, key, value; gate, up) become rows of one storage, and each module's parameter a view of its rows: one
  product, no second copy, and what an optimiser writes is read by the next step. The adapter stays separate; merging
  in bf16 would round small updates away.
- **merged**: a copy at one moment, the adapter added (float32 on a CPU, where a copy is cheap and fewer
  operations count most).
- **separate**: in place without the grouping.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import linear

Form = Literal["in_place", "merged", "separate"]


def merges(dtype: torch.dtype, device: torch.device, told: bool | None) -> bool:
    """Whether weights are decoded merged: as set, or by default in float32 on a CPU."""
    return dtype == torch.float32 and device.type == "cpu" if told is None else told


def base_of(module: Any) -> Any:
    """The plain linear under a LoRA layer, or the module itself."""
    return getattr(module, "base_layer", module)


def active_adapters(module: Any) -> list[str]:
    """Names of the adapters that take part in this layer's output now."""
    if base_of(module) is module or module.disable_adapters or module.merged:
        return []
    return [name for name in module.active_adapters if name in module.lora_A]


def in_one_storage(parameters: Sequence[Tensor]) -> Tensor:
    """The matrices (n_i, m) as one (sum n_i, m) whose rows they are from now on; no copy if they are already.

    The parameters stay the same objects, so optimisers, hooks and state dicts go on working; only `to()` and the
    like give each a storage of its own again.
    """
    first = parameters[0]
    if len(parameters) == 1:
        return first.data
    together = _rows_of_one(parameters)
    if together is None:
        together = torch.cat([parameter.data for parameter in parameters])
        for parameter, rows in zip(parameters, together.split([len(p) for p in parameters]), strict=True):
            parameter.data = rows
    return together


def _rows_of_one(parameters: Sequence[Tensor]) -> Tensor | None:
    """The matrices as one view, if they are already consecutive in one storage."""
    first = parameters[0].data
    offset = first.storage_offset()
    for parameter in parameters:
        same = parameter.untyped_storage().data_ptr() == first.untyped_storage().data_ptr()
        if not (same and parameter.is_contiguous() and parameter.storage_offset() == offset):
            return None
        offset += parameter.numel()
    rows = sum(len(parameter) for parameter in parameters)
    return first.as_strided((rows, first.shape[1]), first.stride(), first.storage_offset())


@dataclass(slots=True)
class _Adapter:
    """One layer's LoRA update: `scaling * B(A(x))` on output columns [start, stop)."""

    down: Tensor  # (r, in)
    up: Tensor  # (out, r)
    scaling: float
    start: int
    stop: int


class Projection:
    """Several linears on the same input as one callable: x (..., in) -> (..., sum of outs), without a graph.

    Args:
        modules: the linears, with or without LoRA.
        adapter: include the adapter (policy) or leave it out (reference).
        form: see this file's head.

    Raises:
        ValueError: for a LoRA variant other than the plain one (DoRA, ...), whose update is not a pair of products.
    """

    def __init__(self, modules: Sequence[Any], adapter: bool, form: Form) -> None:
        bases = [base_of(module) for module in modules]
        self._adapters: list[_Adapter] = []
        self._down: Tensor | None = None  # all A's as one
        self._up: Tensor | None = None  # all B's (k, out, r), where they are of one size
        if form == "merged":
            weights = [merged_weight(module, adapter) for module in modules]
            self._base = [(torch.cat(weights), _biases_together(bases))]
            return
        if form == "in_place" and all(base.bias is None for base in bases):
            self._base = [(in_one_storage([base.weight for base in bases]), None)]
        else:
            self._base = [(base.weight.data, None if base.bias is None else base.bias.data) for base in bases]
        if adapter:
            self._take_adapters(modules, grouped=form == "in_place")

    def _take_adapters(self, modules: Sequence[Any], grouped: bool) -> None:
        start = 0
        for module in modules:
            stop = start + base_of(module).weight.shape[0]
            for name in active_adapters(module):
                if name in module.lora_variant:
                    variant = type(module.lora_variant[name]).__name__
                    raise ValueError(f"LoRA variant {variant}: only plain LoRA can be decoded")
                down, up = module.lora_A[name].weight, module.lora_B[name].weight
                self._adapters.append(_Adapter(down, up, module.scaling[name], start, stop))
            start = stop
        if not grouped or not self._adapters or len({a.down.dtype for a in self._adapters}) > 1:
            return
        self._down = in_one_storage([adapter.down for adapter in self._adapters])
        alike = {(a.up.shape, a.scaling) for a in self._adapters}
        one_each = [a.start for a in self._adapters] == [len(self._adapters[0].up) * i for i in range(len(modules))]
        if len(alike) == 1 and one_each:
            up = in_one_storage([adapter.up for adapter in self._adapters])
            self._up = up.view(len(modules), -1, up.shape[1])

    def __call__(self, x: Tensor) -> Tensor:
        flat = x.flatten(0, -2)
        parts = [linear(flat, weight, bias) for weight, bias in self._base]
        out = parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)
        if self._adapters:
            self._add_adapters(flat, out)
        return out.view(*x.shape[:-1], out.shape[-1])

    def _add_adapters(self, x: Tensor, out: Tensor) -> None:
        """Add the updates to out, in place: computed in the adapter's dtype, rounded once, as PEFT does."""
        first = self._adapters[0]
        if self._down is None:
            for adapter in self._adapters:
                inner = linear(x.to(adapter.down.dtype), adapter.down.data)
                out[:, adapter.start : adapter.stop].add_(linear(inner, adapter.up.data), alpha=adapter.scaling)
            return
        inner = linear(x.to(self._down.dtype), self._down)
        if self._up is not None:
            count, width, _ = self._up.shape
            update = torch.bmm(inner.view(len(x), count, -1).transpose(0, 1), self._up.transpose(1, 2))
            out.view(len(x), count, width).transpose(0, 1).add_(update, alpha=first.scaling)
            return
        widths = [adapter.down.shape[0] for adapter in self._adapters]
        for adapter, part in zip(self._adapters, inner.split(widths, dim=-1), strict=True):
            out[:, adapter.start : adapter.stop].add_(linear(part, adapter.up.data), alpha=adapter.scaling)


def merged_weight(module: Any, adapter: bool) -> Tensor:
    """The weight of a linear layer, the active LoRA updates added if `adapter`."""
    weight: Tensor = base_of(module).weight.detach()
    if adapter:
        for name in active_adapters(module):
            weight = weight + module.get_delta_weight(name).to(weight.dtype)
    return weight


def _biases_together(bases: Sequence[Any]) -> Tensor | None:
    """All biases as one, zeros for a linear without; None if none has one."""
    if all(base.bias is None for base in bases):
        return None
    return torch.cat([base.weight.new_zeros(len(base.weight)) if base.bias is None else base.bias for base in bases])
