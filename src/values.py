"""The values that flow through one training step: frozen, slotted, checking their own shapes.

Letters used in every shape of this project: B prompts, G rollouts a prompt, N = B*G rollouts
(prompt-major: row ``b*G + g``), C context length, T generated length of a level, V vocabulary of a
level, F width of the features a head reads, E reward experts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

PLAN = "plan"
IMAGE = "image"
LEVELS = (PLAN, IMAGE)


def _check(tensor: Tensor, name: str, shape: tuple[int | None, ...], dtype: torch.dtype | None = None) -> None:
    """Raise ValueError unless `tensor` has `shape` (None matches any size) and, if given, `dtype`."""
    fits = tensor.dim() == len(shape) and all(
        want is None or want == have for want, have in zip(shape, tensor.shape, strict=True)
    )
    if not fits:
        wanted = "(" + ", ".join("*" if size is None else str(size) for size in shape) + ")"
        raise ValueError(f"{name}: shape {tuple(tensor.shape)}, expected {wanted}")
    if dtype is not None and tensor.dtype != dtype:
        raise ValueError(f"{name}: dtype {tensor.dtype}, expected {dtype}")


@dataclass(frozen=True, slots=True)
class SpatialRelation:
    """`first` stands at `locality` ("left of", "above", ...) relative to `second`."""

    first: str
    second: str
    locality: str


@dataclass(frozen=True, slots=True)
class ObjectCount:
    """The image shall show exactly `number` (>= 1) of `name`."""

    name: str
    number: int


@dataclass(frozen=True, slots=True)
class PromptRecord:
    """One prompt and what is known of it; the metadata decides which experts apply.

    `task_type` groups prompts in reports. `scene` is free, JSON-like data of a particular world (the
    drawn shapes keep the objects a correct picture shows there); experts of other worlds ignore it.
    `place` is where it was read (``prompts.jsonl:12``), for messages; it is no part of the record's value.
    """

    prompt: str
    task_type: str = "none"
    nouns: tuple[str, ...] = ()
    attribute_nouns: tuple[str, ...] = ()
    spatial: SpatialRelation | None = None
    counts: tuple[ObjectCount, ...] = ()
    scene: Mapping[str, Any] = field(default_factory=dict)
    place: str = field(default="", compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class PromptBatch:
    """The prompts of one optimiser step on this rank.

    `step` numbers prompt batches from 0; `positions` are the places of the records inside the global
    (all ranks) batch. Together with the run's seed they key the sampling noise, so that neither the
    rank nor the batch composition changes a rollout.
    """

    records: tuple[PromptRecord, ...]
    positions: tuple[int, ...]
    step: int

    def __post_init__(self) -> None:
        if len(self.records) != len(self.positions):
            raise ValueError(f"PromptBatch: {len(self.records)} records but {len(self.positions)} positions")
        if not self.records:
            raise ValueError("PromptBatch: no records")

    def __len__(self) -> int:
        return len(self.records)


@dataclass(frozen=True, slots=True)
class TokenContext:
    """What a level is conditioned on: left-padded ids (N, C) int64 and mask (N, C) bool, True = real."""

    ids: Tensor
    mask: Tensor

    def __post_init__(self) -> None:
        _check(self.ids, "context ids", (None, None), torch.int64)
        _check(self.mask, "context mask", tuple(self.ids.shape), torch.bool)

    def __len__(self) -> int:
        return self.ids.shape[0]

    def rows(self, index: Tensor | slice) -> TokenContext:
        """The chosen rows; columns that are padding in all of them are dropped."""
        ids, mask = self.ids[index], self.mask[index]
        used = int(mask.sum(1).max()) if mask.numel() else 0
        start = ids.shape[1] - used
        return TokenContext(ids[:, start:], mask[:, start:])


@dataclass(frozen=True, slots=True)
class Sampling:
    """How a level's tokens were drawn.

    `temperature` divides the (guided) logits, > 0. `guidance_scale` w mixes ``u + w*(c - u)``;
    1 means no unconditional branch. `top_k` (>= 1) and `top_p` (in (0, 1]) truncate what is drawn from, None: not;
    :func:`kernels.sample_tokens` defines them. Log-probs are of the guided distribution over the whole vocabulary,
    never truncated: training computes those, so truncated samples are slightly off-policy.
    """

    temperature: float = 1.0
    guidance_scale: float = 1.0
    top_k: int | None = None
    top_p: float | None = None

    @property
    def guided(self) -> bool:
        return self.guidance_scale != 1.0


@dataclass(frozen=True, slots=True)
class LinearHead:
    """The last linear of a head: logits = features @ weight.T + bias; weight (V, F), bias (V,) or None."""

    weight: Tensor
    bias: Tensor | None = None

    def __call__(self, features: Tensor) -> Tensor:
        return torch.nn.functional.linear(features, self.weight, self.bias)


@dataclass(frozen=True, slots=True)
class ReferenceRows:
    """The reference's whole rows of a level, as its head's input: what the exact KL needs.

    features (N, T, F), and those of the guidance branch where the log-probs are guided. Without graph.
    """

    features: Tensor
    head: LinearHead
    unconditional_features: Tensor | None = None

    def __len__(self) -> int:
        return self.features.shape[0]

    def rows(self, index: Tensor | slice) -> ReferenceRows:
        """The rows of some rollouts."""
        branch = self.unconditional_features
        return replace(
            self,
            features=self.features[index],
            unconditional_features=None if branch is None else branch[index],
        )

    def first_tokens(self, length: int) -> ReferenceRows:
        """The rows of the first `length` tokens."""
        branch = self.unconditional_features
        return replace(
            self,
            features=self.features[:, :length],
            unconditional_features=None if branch is None else branch[:, :length],
        )


@dataclass(frozen=True, slots=True)
class TokenLevel:
    """The tokens one level generated, with everything needed to score them again.

    ids (N, T) int64; mask (N, T) bool, True up to and including the end token; rollout_logp (N, T)
    float32, log-probs under `sampling` (see there) as kept by the sampler; conditional_logp (N, T) the same
    tokens' log-probs without guidance. `unconditional` is the context of the guidance branch and
    `unconditional_features` (N, T, F) what the head read there during the rollout, reusable while the
    policy is unchanged. Of the reference there is either `ref_logp` (N, T) or, for the exact KL, `reference`.
    `old_logp` and `ref_logp` are float32, or float64 from a float64 policy.
    """

    context: TokenContext
    ids: Tensor
    mask: Tensor
    rollout_logp: Tensor
    conditional_logp: Tensor
    sampling: Sampling
    unconditional: TokenContext | None = None
    unconditional_features: Tensor | None = None
    old_logp: Tensor | None = None
    ref_logp: Tensor | None = None
    reference: ReferenceRows | None = None

    def __post_init__(self) -> None:
        shape = (len(self.context), self.ids.shape[-1])
        _check(self.ids, "level ids", shape, torch.int64)
        _check(self.mask, "level mask", shape, torch.bool)
        for name in ("rollout_logp", "conditional_logp", "old_logp", "ref_logp"):
            value = getattr(self, name)
            if value is not None:
                exact = name in ("old_logp", "ref_logp") and value.dtype == torch.float64
                _check(value, name, shape, torch.float64 if exact else torch.float32)
        if self.unconditional_features is not None:
            _check(self.unconditional_features, "unconditional_features", (*shape, None))
        if self.reference is not None:
            _check(self.reference.features, "reference features", (*shape, None))

    def __len__(self) -> int:
        return self.ids.shape[0]

    @property
    def tokens(self) -> int:
        """How many tokens count."""
        return int(self.mask.sum())

    def rows(self, index: Tensor | slice) -> TokenLevel:
        """The level restricted to some rollouts."""

        def pick(value: Tensor | None) -> Tensor | None:
            return None if value is None else value[index]

        return replace(
            self,
            context=self.context.rows(index),
            ids=self.ids[index],
            mask=self.mask[index],
            rollout_logp=self.rollout_logp[index],
            conditional_logp=self.conditional_logp[index],
            unconditional=None if self.unconditional is None else self.unconditional.rows(index),
            unconditional_features=pick(self.unconditional_features),
            old_logp=pick(self.old_logp),
            ref_logp=pick(self.ref_logp),
            reference=None if self.reference is None else self.reference.rows(index),
        )

    def first_tokens(self, length: int) -> TokenLevel:
        """The level cut to the first `length` token columns; what follows them changes nothing before."""

        def cut(value: Tensor | None) -> Tensor | None:
            return None if value is None else value[:, :length]

        return replace(
            self,
            ids=self.ids[:, :length],
            mask=self.mask[:, :length],
            rollout_logp=self.rollout_logp[:, :length],
            conditional_logp=self.conditional_logp[:, :length],
            unconditional_features=cut(self.unconditional_features),
            old_logp=cut(self.old_logp),
            ref_logp=cut(self.ref_logp),
            reference=None if self.reference is None else self.reference.first_tokens(length),
        )


@dataclass(frozen=True, slots=True)
class RewardReport:
    """What the experts say of N images.

    names: E expert names; scores (N, E) float32 as the experts gave them, meaningless where not applicable;
    applicable (N, E) bool; total (N,) float32, the reward that trains, NaN where no expert could judge the image:
    such a row is never learned from. `details` are further per-image figures for the logs ((N,) float32 each, NaN
    where they do not apply), e.g. ``all_correct`` in the drawn world. raw (N,) float32: the reward in the scores'
    own units, for logs and evaluations; the same as `total` unless scores are normalised. failed (N, E) bool: where
    an expert should have scored and could not.
    """

    names: tuple[str, ...]
    scores: Tensor
    applicable: Tensor
    total: Tensor
    details: Mapping[str, Tensor] = field(default_factory=dict)
    raw: Tensor = None  # type: ignore[assignment]
    failed: Tensor = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        shape = (self.total.shape[0], len(self.names))
        if self.raw is None:
            object.__setattr__(self, "raw", self.total)
        if self.failed is None:
            object.__setattr__(self, "failed", torch.zeros_like(self.applicable))
        _check(self.total, "reward total", (None,), torch.float32)
        _check(self.raw, "raw reward", (shape[0],), torch.float32)
        _check(self.scores, "reward scores", shape, torch.float32)
        _check(self.applicable, "reward applicable", shape, torch.bool)
        _check(self.failed, "reward failed", shape, torch.bool)
        for name, value in self.details.items():
            _check(value, f"reward detail {name}", (shape[0],), torch.float32)

    def __len__(self) -> int:
        return self.total.shape[0]

    @property
    def judged(self) -> Tensor:
        """(N,) bool: the images that have a reward."""
        return ~self.total.isnan()

    def rows(self, index: Tensor) -> RewardReport:
        """The report of the chosen images."""
        return RewardReport(
            self.names,
            self.scores[index],
            self.applicable[index],
            self.total[index],
            {name: value[index] for name, value in self.details.items()},
            self.raw[index],
            self.failed[index],
        )


@dataclass(frozen=True, slots=True)
class Experience:
    """One prompt batch, rolled out and scored: symmetric in its levels.

    advantages: per level, (N,) float32.
    """

    levels: Mapping[str, TokenLevel]
    advantages: Mapping[str, Tensor]
    report: RewardReport
    group_size: int

    def __post_init__(self) -> None:
        rollouts = self.report.total.shape[0]
        if rollouts % self.group_size:
            raise ValueError(f"Experience: {rollouts} rollouts are no multiple of group_size {self.group_size}")
        for name, level in self.levels.items():
            _check(self.advantages[name], f"advantages[{name}]", (len(level),), torch.float32)

    def __len__(self) -> int:
        return self.report.total.shape[0]


@dataclass(frozen=True, slots=True)
class LevelOutput:
    """The policy's answer to a level: features (N, T, F), one for each generated token, and the head."""

    features: Tensor
    head: LinearHead

    def logits(self) -> Tensor:
        """(N, T, V) in the features' dtype."""
        return self.head(self.features)


@dataclass(frozen=True, slots=True)
class LossOutput:
    """A scalar loss with its graph, and detached metrics by name."""

    loss: Tensor
    metrics: Mapping[str, Tensor]


def as_records(prompts: Sequence[str]) -> tuple[PromptRecord, ...]:
    """Bare prompts as records without metadata."""
    return tuple(PromptRecord(prompt) for prompt in prompts)
