"""Trained weights cut over ranks (FSDP2), and the whole copy of them that decodes.

Training gathers one layer at a time; sampling needs all of them for every token. So rollouts, the reference and
evaluations run on a whole copy in the dtype of the products, at addresses that never change (CUDA graphs need that),
written anew after every optimiser step, one parameter at a time. Frozen weights are not cut: the copy shares them, so
that with LoRA nothing exists twice but the adapters.

While the reference of full fine-tuning is asked, its weights stand in the copy: kept is one cut part of them a rank.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

from src.policies.dtensors import cut_like
from src.policies.engine.decoding_copy import DecodingCopy, round_frozen
from src.policies.engine.snapshot import check_names, trained_parameters


class ShardedWeights:
    """A policy's trained parameters over the ranks of `mesh`, and their whole copy.

    Args:
        policy: the root; its own `forward` is where training enters.
        layers: modules whose weights are gathered one after the other.
        network: the part of the policy that decodes; copied.
        mesh: one dimension, all ranks.
        dtype: of products and of the copy, beside masters and gradients in the parameters' own; None: their own.
        prefix: of the network's names inside the policy.
    """

    def __init__(
        self,
        policy: nn.Module,
        layers: Iterable[nn.Module],
        network: nn.Module,
        mesh: DeviceMesh,
        dtype: torch.dtype | None,
        prefix: str,
    ) -> None:
        frozen = {parameter for parameter in policy.parameters() if not parameter.requires_grad}
        if dtype is not None:
            round_frozen(policy, dtype)
        # In one order on all ranks: the copy is written parameter by parameter.
        names = [name.removeprefix(prefix) for name in trained_parameters(policy)]
        self.copy = DecodingCopy(network, names, dtype, prefix)
        # Nothing that goes in is cast: log-probs among it are float32, and the embeddings are in `dtype` already.
        reduced = None if dtype is None else torch.float32
        mixed = MixedPrecisionPolicy(dtype, reduced, cast_forward_inputs=False)
        for layer in layers:
            fully_shard(layer, mesh=mesh, mp_policy=mixed, ignored_params=frozen)
        fully_shard(policy, mesh=mesh, mp_policy=mixed, ignored_params=frozen)
        self._trained = trained_parameters(policy)

    def cut(self, weights: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """This rank's part of whole `weights`, or of the trained ones as they are now, in the copy's dtype."""
        if weights is not None:
            check_names(self._trained, weights)
        return {
            name: (parameter if weights is None else cut_like(weights[name], parameter))
            .detach()
            .to(self.copy.parameters[name].dtype, copy=True)
            for name, parameter in self._trained.items()
        }

    @contextmanager
    def lent(self, weights: Mapping[str, Tensor]) -> Iterator[None]:
        """`weights`, cut as `cut` gives them, stand in the copy inside the block. All ranks at once.

        An error inside leaves them there: the other ranks could be anywhere, and none would answer.
        """
        self.copy.fill(weights)
        yield
        self.copy.fill(self._trained)
