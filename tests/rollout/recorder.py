"""A CUDA graph's rules without a GPU: record a step's operations once, replay them on the very same tensors."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from src.rollout.graph import Step

# Operations whose result, or whose result's shape, the host has to wait for, or that bring data from the host.
HOST = (
    "_local_scalar_dense nonzero nonzero_static unique _unique _unique2 unique_dim unique_consecutive masked_select"
    " equal is_nonzero lift_fresh repeat_interleave.Tensor bincount"
).split()


class HostNeeded(AssertionError):
    """A step asked the host for something; as a CUDA graph it could not be captured."""


class Recorder(TorchDispatchMode):
    """Keeps every operation that runs under it, with its tensors; `replay` runs them again into the same outputs.

    As in a CUDA graph, whatever the host did besides (numbers it computed, shapes it chose, tensors it made anew) is
    as it was when recorded.
    """

    def __init__(self) -> None:
        super().__init__()
        self.tape: list[tuple[Any, tuple[Any, ...], dict[str, Any], Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func.name().removeprefix("aten::")
        if name in HOST or name.partition(".")[0] in HOST or self._by_mask(name, args):
            raise HostNeeded(f"{func} needs the host")
        out = func(*args, **kwargs)
        self.tape.append((func, args, kwargs, out))
        return out

    @staticmethod
    def _by_mask(name: str, args: Any) -> bool:
        """Indexing by a bool tensor looks its number of elements up."""
        indexes = name.startswith(("index.Tensor", "index_put", "_index_put_impl"))
        return indexes and any(isinstance(i, Tensor) and i.dtype == torch.bool for i in args[1] or ())

    def replay(self) -> None:
        """All operations once more."""
        for func, args, kwargs, out in self.tape:
            again = func(*args, **kwargs)
            for old, new in zip(tree_leaves(out), tree_leaves(again), strict=True):
                if isinstance(old, Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)


def record(step: Step, reset: Step) -> Step:
    """What `src.rollout.graph.cuda_graph` does on a GPU."""
    step()  # a warm-up, which must not show
    reset()
    recorder = Recorder()
    with recorder:
        step()
    reset()
    return recorder.replay
