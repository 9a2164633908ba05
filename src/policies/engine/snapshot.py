"""Copies of trained weights, and swapping them into a model temporarily."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


def trained_parameters(module: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that get gradients, by name."""
    return {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}


def copy_of(parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Detached copies of all, where they are."""
    return {name: parameter.detach().clone() for name, parameter in parameters.items()}


def check_names(parameters: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    """Raise ValueError unless both have the same names."""
    if parameters.keys() != values.keys():
        odd = sorted(parameters.keys() ^ values.keys())
        raise ValueError(f"weights: {len(odd)} names do not fit, e.g. {odd[0]}")


@torch.no_grad()
def write(parameters: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    """Put `values` into the parameters of the same names, in place; raises ValueError for names that do not fit."""
    check_names(parameters, values)
    for name, parameter in parameters.items():
        parameter.copy_(values[name])


@contextmanager
def lent(parameters: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> Iterator[None]:
    """The parameters hold `values` inside the block; afterwards they are exactly as before."""
    own = copy_of(parameters)
    write(parameters, values)
    try:
        yield
    finally:
        write(parameters, own)
