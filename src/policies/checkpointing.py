"""Activation checkpointing of a trunk's layers: of each only the input is kept, the rest is computed again.

transformers checkpoints its layers in training mode only, which would switch dropout on as well; the policy
stays in eval mode, so that training's log-probs are the sampler's. Here the layer's own `forward` is wrapped,
whatever its mode, on top of torch's public `checkpoint`; names, hooks and `state_dict` of the model stay as
they are, and a pass without a graph is the layer itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


class Recomputed:
    """A layer's `forward` that keeps its arguments only and runs again in the backward pass.

    Not reentrant: so parameters get gradients where no input requires one (LoRA on frozen embeddings), and
    DDP sees each of them once. Nothing random happens inside, hence no state of random numbers is kept.
    """

    def __init__(self, forward: Callable[..., Any]) -> None:
        self.forward = forward

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return self.forward(*args, **kwargs)
        return checkpoint(self.forward, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)


def checkpoint_layers(layers: Iterable[nn.Module]) -> None:
    """Wrap the `forward` of each layer, once."""
    for layer in layers:
        if not isinstance(layer.forward, Recomputed):
            layer.forward = Recomputed(layer.forward)
