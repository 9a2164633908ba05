"""The strategy behind ``trainer=fsdp``: FSDP2 through Lightning, with the checkpoint file of every other strategy."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from lightning.pytorch.strategies import ModelParallelStrategy, Strategy
from torch import Tensor
from torch.optim import Optimizer

from src.policies.dtensors import cut_like, kept_whole


class ShardedStrategy(ModelParallelStrategy):
    """Weights, gradients and moments cut over all ranks; `BiCoTModule.configure_model` does the cutting.

    Checkpoints are one file with whole tensors, written by the first rank, as other strategies write them: a run may
    go on with another number of ranks, or with another strategy.

    Args:
        dtype: of matrix products and of what is gathered for them; None: the weights' own.
    """

    def __init__(self, dtype: torch.dtype | None = None) -> None:
        super().__init__(save_distributed_checkpoint=False)
        self.dtype = dtype

    @property
    def lightning_restore_optimizer(self) -> bool:
        return True

    def setup_environment(self) -> None:
        # Lightning's "auto" would cut over nodes only and ask for tensor parallelism within one.
        self._data_parallel_size, self._tensor_parallel_size = self.num_nodes * self.num_processes, 1
        super().setup_environment()

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Nothing: the module itself puts what is trained into a checkpoint."""
        return {}

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        module: Any = self.lightning_module
        module.load_trained_state(checkpoint["state_dict"])

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        return Strategy.load_checkpoint(self, checkpoint_path, weights_only)

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """The optimiser's state with whole tensors on the first rank; the others only take part in the gathering."""
        state: dict[str, Any] = Strategy.optimizer_state(self, optimizer)
        return {**state, "state": {index: self._gathered(part) for index, part in state["state"].items()}}

    def _gathered(self, part: Mapping[str, Any]) -> dict[str, Any]:
        kept = {name: kept_whole(torch.as_tensor(value), self.is_global_zero) for name, value in part.items()}
        return {name: value for name, value in kept.items() if value is not None}

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            cut = {index: _cut(part, trained[index]) for index, part in state["state"].items()}
            optimizer.load_state_dict({**state, "state": cut})


def _cut(part: Mapping[str, Tensor], parameter: Tensor) -> dict[str, Tensor]:
    """One parameter's moments, cut as it is; what has another shape (the count of steps) stays."""
    return {
        name: cut_like(value, parameter) if value.shape == parameter.shape else value for name, value in part.items()
    }


def kept_states(named: Iterable[tuple[str, Tensor]], keep: bool) -> dict[str, Tensor]:
    """Whole tensors on the CPU, by name, for who keeps them; nothing for the other ranks. All ranks at once."""
    states = {name: kept_whole(value, keep) for name, value in named}
    return {name: value for name, value in states.items() if value is not None}
