"""A second copy of a network's trained weights, whole and in the dtype of the products, for decoding.

Needed where the trained weights are cut over ranks (FSDP2), and where they are float32 masters of bf16 products:
decoding reads every weight for every token, and bf16 is half the bytes. Its addresses never change
(CUDA graphs need that). Frozen weights are shared with the network, so that they exist once.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from src.policies.dtensors import whole


class DecodingCopy:
    """A copy of `network` that follows its trained weights by `fill`; hidden from modules that hold it.

    Args:
        network: the part of the policy that decodes.
        names: its trained parameters, in one order on all ranks.
        dtype: of the copy; None: the parameters' own.
        prefix: of the network's names inside the policy.
    """

    def __init__(self, network: nn.Module, names: Iterable[str], dtype: torch.dtype | None, prefix: str = "") -> None:
        names = list(names)
        self.network: Any = decoding_copy(network, names, dtype)
        parameters = dict(self.network.named_parameters())
        # By their names in the policy.
        self.parameters: dict[str, Tensor] = {prefix + name: parameters[name] for name in names}

    @torch.no_grad()
    def fill(self, weights: Mapping[str, Tensor]) -> None:
        """Update the copy from `weights`, sharded or whole; needs memory for one more parameter. All ranks at once."""
        for name, target in self.parameters.items():
            # Rounding before gathering halves what is sent.
            target.copy_(whole(weights[name].detach().to(target.dtype)))


def decoding_copy(network: nn.Module, names: Iterable[str], dtype: torch.dtype | None) -> nn.Module:
    """The network with a frozen copy, in `dtype`, of each parameter named; all others are shared."""
    own = set(names)
    copied = copy.deepcopy(network, {id(p): p for name, p in network.named_parameters() if name not in own})
    for name, parameter in copied.named_parameters():
        if name in own:
            parameter.requires_grad_(False)
            parameter.data = parameter.data.to(dtype or parameter.dtype)
    return copied


def round_frozen(module: nn.Module, dtype: torch.dtype) -> None:
    """Frozen parameters in `dtype`, in place: other users of them see the change."""
    for parameter in module.parameters():
        if not parameter.requires_grad:
            parameter.data = parameter.data.to(dtype)
