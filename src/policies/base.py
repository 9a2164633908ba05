"""What the trainer asks of a model: two protocols, and nothing about how the model is built.

A `Policy` turns prompts into contexts, trains (`forward`, with a graph) and lends out `Decoder`s for
everything without a graph: sampling, and scoring tokens under the current or the reference weights.
Any ``nn.Module`` with these members can be trained; `tests/policies/toy.py` is a second one. What a policy
may have besides (a step that can be captured, a reference that moves) are protocols of their own.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from src.values import LevelOutput, LinearHead, TokenContext, TokenLevel


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """How rollouts are computed. Each switch works alone, and none changes what is sampled beyond rounding,
    which in bf16 may be another token.

    kernels: auto | triton | torch, whose operations a decode step is made of.
    graph: capture the one-token step as a CUDA graph and replay it; None: on a GPU.
    shared_prefix: contexts that begin alike are read once.
    fused_projections: q/k/v and gate/up, and the LoRA A's of a group, as one product each.
    fused_step: Triton's attention, norm, rotation and gate in the step, where `kernels` gives Triton.
    fused_sampling: Triton's sampler, where `kernels` gives Triton.
    filled_attention: a step reads the filled part of the cache only.
    reuse_cache: keep the cache, and what was captured on it, from one rollout to the next.
    """

    kernels: str = "auto"
    graph: bool | None = None
    shared_prefix: bool = True
    fused_projections: bool = True
    fused_step: bool = True
    fused_sampling: bool = True
    filled_attention: bool = True
    reuse_cache: bool = True

    def captures(self, device: torch.device) -> bool:
        """Whether a step on `device` is to be captured."""
        return device.type == "cuda" if self.graph is None else self.graph


@runtime_checkable
class Decoder(Protocol):
    """The policy's weights at one moment, ready for sampling and scoring; never builds a graph."""

    def start(self, level: str, context: TokenContext, steps: int) -> tuple[Any, Tensor]:
        """Read the contexts; returns a state with room for `steps` tokens a row, and features (N, F) of token 0."""
        ...

    def advance(self, state: Any, ids: Tensor) -> Tensor:
        """Append ids (N,) to the rows of `state`; returns features (N, F) of the next token."""
        ...

    def evaluate(self, level: str, context: TokenContext, ids: Tensor) -> Tensor:
        """Features (N, T, F) for every one of ids (N, T) at once: what `start` and `advance` would return."""
        ...

    def head(self, level: str) -> LinearHead:
        """The last linear of the level's head."""
        ...


@runtime_checkable
class CapturableDecoder(Decoder, Protocol):
    """A decoder whose `advance` works on fixed addresses and never asks the host: it can be captured and replayed.

    Two calls of `start` with as many rows give states at the same addresses, and the older state is void. `captured`
    belongs to the rollout, which keeps there what it captured; the decoder empties it when addresses change.
    """

    engine: EngineSettings
    captured: dict[Hashable, Any]

    def rows_that_fit(self, level: str, places: int) -> int | None:
        """How many rows of `places` tokens (context included) of a level the device has memory for; None: no limit
        known.
        """
        ...

    def finish(self, state: Any) -> None:
        """The decode of `state` is over; without ``engine.reuse_cache`` its memory is given back."""
        ...

    def moving(self, state: Any) -> Sequence[Tensor]:
        """The small tensors that `advance` changes; put back, a step can be repeated (the cache needs no care)."""
        ...


@runtime_checkable
class HasEngine(Protocol):
    """A policy whose rollouts take `EngineSettings`; the next `decoder()` follows what is set here."""

    engine: EngineSettings

    def release_cache(self) -> None:
        """Give back what is kept from one rollout to the next; it is made anew when needed."""
        ...


@runtime_checkable
class Policy(Protocol):
    """A model with a plan level and an image level. Implementations are ``nn.Module``s.

    `end_id` ends a plan; `image_tokens` is K, the number of tokens of an image.
    """

    end_id: int
    image_tokens: int

    @property
    def device(self) -> torch.device: ...

    def plan_context(self, prompts: Sequence[str]) -> TokenContext:
        """What the plan of each prompt continues."""
        ...

    def image_context(self, prompts: Sequence[str], plans: Sequence[str]) -> TokenContext:
        """What the image of each prompt and plan continues."""
        ...

    def unconditional(self, context: TokenContext) -> TokenContext:
        """The context of the guidance branch, row by row."""
        ...

    def read_plans(self, ids: Tensor, mask: Tensor) -> list[str]:
        """Plan tokens (N, T) as text; tokens outside `mask` and special tokens are left out."""
        ...

    def paint(self, ids: Tensor) -> Tensor:
        """Image tokens (N, K) as pixels (N, 3, H, W), float32 in [0, 1]."""
        ...

    def forward(self, levels: Mapping[str, TokenLevel]) -> dict[str, LevelOutput]:
        """The training pass, with a graph. All levels go through one call, so that DDP and FSDP see the root."""
        ...

    def decoder(self) -> Decoder:
        """The weights as they are now."""
        ...

    def reference(self) -> AbstractContextManager[Decoder]:
        """The frozen reference's weights, valid inside the ``with`` block."""
        ...


@runtime_checkable
class RefreshableReference(Protocol):
    """What a policy has besides `Policy` if its reference can move along (``algorithm.reference_refresh``)."""

    def refresh_reference(self) -> None:
        """Make the trained weights, as they are now, the reference."""
        ...

    def reference_state(self) -> dict[str, torch.Tensor]:
        """A refreshed reference's weights by name, on the CPU, for checkpoints; empty before the first refresh."""
        ...

    def load_reference_state(self, state: Mapping[str, torch.Tensor]) -> None:
        """Put back what `reference_state` gave."""
        ...


@runtime_checkable
class RecomputesActivations(Protocol):
    """What a policy has besides `Policy` if it can trade time for memory (``optim.activation_checkpointing``)."""

    def checkpoint_activations(self) -> None:
        """From now on keep little of a forward pass and compute it again in the backward pass; gradients stay."""
        ...


@runtime_checkable
class FollowsTraining(Protocol):
    """What a policy has besides `Policy` if something else than the trained weights may decode: a copy of them."""

    def refresh_rollout_weights(self) -> None:
        """The trained weights have changed: decoders shall know. All ranks at once; without a copy nothing to do."""
        ...


@runtime_checkable
class MixedPrecision(FollowsTraining, Protocol):
    """What a policy has besides `Policy` if float32 masters need not decode (``trainer.precision=bf16-mixed``)."""

    def decode_in(self, dtype: torch.dtype) -> None:
        """From now on a copy in the products' `dtype` decodes; the reference and what is frozen are in it, too."""
        ...


@runtime_checkable
class Shardable(FollowsTraining, Protocol):
    """What a policy has besides `Policy` if its trained weights can be cut over ranks (``trainer=fsdp``)."""

    def shard(self, mesh: DeviceMesh, dtype: torch.dtype | None) -> None:
        """Cut them over `mesh`; products in `dtype`, None: in the weights' own. Decoders then use a whole copy."""
        ...
