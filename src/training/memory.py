"""How much memory a run needs, by formula: weights, optimiser, and the largest of a step's phases.

Letters as in `src.values`; H hidden, I intermediate, A = heads x head_dim, S = C + T - 1 places of a training
row, e bytes of an activation. docs/MEMORY.md has the derivation, the numbers and how far they were checked.
All functions are pure; sizes are bytes unless they say otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from src.policies.engine.cache import SHARE_OF_FREE_MEMORY, rounded_places
from src.policies.sizes import ModelSizes
from src.values import IMAGE, PLAN

GIB = 2**30
FLOAT = 4
# What the driver, the matrix libraries and the allocator take besides tensors, and the share lost to fragments.
RESERVED = GIB
USABLE = 0.95
# Chunks of logits that the fused head holds at a time, policy and reference (kernels/README.md).
FUSED_HEAD = 2 * 8 * 2**20


@dataclass(frozen=True, slots=True)
class StepShape:
    """What a step of this process computes.

    rollouts N; contexts: the longest context of each level; plan_tokens: the longest plan. guided: the image level
    is sampled with an unconditional branch; guided_logp: it is trained on those log-probs. reference: the
    reference is run. exact_kl: its whole rows are kept. evaluation_rows: pictures decoded at once in evaluations.
    mixed: float32 weights with bf16 products; in full fine-tuning a bf16 copy decodes. fused_head: logits exist in
    chunks only. mask_per_layer: attention keeps a copy of the mask in every layer (on a GPU). processes: how many
    share the gradients. sharded: trained weights, gradients and moments are cut over them (FSDP2), and a whole copy
    decodes. expert_bytes:
    weights of the reward experts on the same device. max_rows: rollouts decoded at once, if fewer.
    """

    rollouts: int
    group_size: int
    contexts: Mapping[str, int]
    plan_tokens: int
    guided: bool
    guided_logp: bool
    reference: bool
    exact_kl: bool
    evaluation_rows: int
    mixed: bool
    fused_head: bool
    mask_per_layer: bool
    processes: int = 1
    sharded: bool = False
    expert_bytes: int = 0
    max_rows: int | None = None

    def branches(self, level: str) -> int:
        """Rows a rollout takes: two where an unconditional branch runs beside it."""
        return 2 if self.guided and level == IMAGE else 1

    def at_once(self, rows: int) -> int:
        """How many of `rows` rollouts are decoded at once."""
        return min(rows, self.max_rows or rows)


@dataclass(frozen=True, slots=True)
class StepCut:
    """How a step is cut into backward passes: rollouts each (None: all), one level each, layers computed again."""

    microbatch: int | None = None
    split_levels: bool = False
    activation_checkpointing: bool = False

    def score_rows(self, group_size: int) -> int | None:
        """Rollouts at a time of a pass without a graph: whole groups share the prefix of their plans."""
        return None if self.microbatch is None else max(self.microbatch, group_size)


@dataclass(frozen=True, slots=True)
class MemoryEstimate:
    """Bytes by part. weights, optimiser and experts are there all the time; of `phases` one at a time."""

    weights: int
    optimiser: int
    experts: int
    phases: Mapping[str, int]

    @property
    def constant(self) -> int:
        """What no cut of a step makes smaller: counted, not modelled."""
        return self.weights + self.optimiser + self.experts

    @property
    def largest(self) -> str:
        """The phase that needs most."""
        return max(self.phases, key=lambda name: self.phases[name])

    def needs(self, *phases: str) -> int:
        """Bytes of the constant parts and the largest of `phases`; of all phases where none is named."""
        return self.constant + max(self.phases[name] for name in phases or self.phases)

    def fits(self, card: int, *phases: str) -> bool:
        """Whether a device of `card` bytes holds what the phases need, the reserve included."""
        return self.needs(*phases) + RESERVED <= USABLE * card

    def described(self, card: int | None = None) -> str:
        """One line for the person who starts the run."""
        phases = ", ".join(f"{name} {size / GIB:.1f}" for name, size in self.phases.items())
        experts = f", experts {self.experts / GIB:.1f}" if self.experts else ""
        has = "" if card is None else f", the card has {card / GIB:.1f}"
        return (
            f"memory: needs ~{self.needs() / GIB:.1f} GiB (weights {self.weights / GIB:.1f}, optimiser"
            f" {self.optimiser / GIB:.1f}{experts}, and the largest of: {phases}){has}"
        )


def estimate(sizes: ModelSizes, shape: StepShape, cut: StepCut) -> MemoryEstimate:
    """What a run needs at most.

    weights: see :func:`held_bytes`. optimiser: AdamW's two moments, and DDP's buckets.
    """
    weights = held_bytes(sizes, shape)
    buckets = sizes.trained_bytes if shape.processes > 1 and not shape.sharded else 0
    decoding = decoding_sizes(sizes, shape)
    if shape.sharded and shape.mixed:
        # FSDP2 gathers weights in bf16: everything that is computed is as if weights were.
        sizes, shape = decoding, replace(shape, mixed=False)
    rows = {"rollout": shape.at_once(shape.rollouts), "evaluation": shape.at_once(shape.evaluation_rows)}
    kept = cache_of_rollouts(decoding, shape, max(rows.values()))  # stays for the next rollout
    return MemoryEstimate(
        weights=weights,
        optimiser=2 * own_bytes(sizes, shape) + buckets,
        experts=shape.expert_bytes,
        phases={
            **{phase: rollout_bytes(decoding, shape, number) for phase, number in rows.items()},
            "reference": kept + reference_bytes(decoding, shape, cut) if shape.reference else 0,
            "update": kept + update_bytes(sizes, shape, cut),
        },
    )


def own_bytes(sizes: ModelSizes, shape: StepShape) -> int:
    """Trained weights, or their gradients, that one process holds all the time."""
    return -(-sizes.trained_bytes // shape.processes) if shape.sharded else sizes.trained_bytes


def decoding_sizes(sizes: ModelSizes, shape: StepShape) -> ModelSizes:
    """The sizes of what decodes: in full fine-tuning under mixed precision a copy in bf16."""
    return replace(sizes, element=2, merged=False) if shape.mixed and not sizes.lora else sizes


def held_bytes(sizes: ModelSizes, shape: StepShape) -> int:
    """All weights and buffers: the frozen ones, the trained ones, the reference's, and the copy that decodes.

    LoRA: the reference is the base; cut over ranks there is a copy of the adapters. Full fine-tuning: frozen weights
    exist once; they, the reference and the copy (cut over ranks, or under mixed precision) are in the dtype of the
    products. Cut over ranks, this process has its part of the trained weights and of the reference.
    """
    frozen = sizes.weight_bytes - sizes.trained_bytes
    own = own_bytes(sizes, shape)
    if sizes.lora:
        return frozen + own + (sizes.trained_bytes if shape.sharded else 0)
    decoded = sizes.trained * _activation(sizes, shape)
    reference = -(-decoded // shape.processes) if shape.sharded else decoded
    copied = decoded if shape.sharded or shape.mixed else 0
    return frozen * _activation(sizes, shape) // sizes.element + own + reference + copied


def gathered_bytes(sizes: ModelSizes, shape: StepShape) -> int:
    """What FSDP2 holds whole at a backward pass's fullest moment, in the dtype of the products.

    The trained weights outside of the layers with their gradients, and those of a layer with theirs while the next
    layer's weights arrive. One parameter of the copy, written after the step, is never more.
    """
    if not shape.sharded:
        return 0
    if sizes.lora:
        return 3 * sizes.trained_bytes // sizes.layers
    layer = sizes.projections // sizes.layers
    return (2 * (sizes.trained - sizes.projections) + 3 * layer) * _activation(sizes, shape)


def choose_cut(
    sizes: ModelSizes,
    shape: StepShape,
    microbatch: int | None,
    split_levels: bool | None,
    activation_checkpointing: bool | None,
    card: int | None,
) -> StepCut:
    """The cut of a step for a device of `card` bytes; what is given is kept, None is chosen.

    The step as a whole where that fits; else with activations computed again, one level at a time; else with half
    of the rollouts a backward pass, and half of those, as long as that makes it less. Without a card (a CPU) nothing
    is cut that was not asked for.
    """
    choices = (
        (False, True) if activation_checkpointing is None and card is not None else (bool(activation_checkpointing),)
    )
    cut = StepCut()
    for again in choices:
        cut = StepCut(microbatch, again if split_levels is None else split_levels, again)
        if card is None or estimate(sizes, shape, cut).fits(card, "reference", "update"):
            return cut
    if microbatch is not None or card is None:
        return cut
    halves = [shape.rollouts]
    while halves[-1] > 1:
        halves.append((halves[-1] + 1) // 2)
    needs = {rows: estimate(sizes, shape, replace(cut, microbatch=rows)) for rows in halves}
    least = min(needed.needs("reference", "update") for needed in needs.values())
    rows = next(
        rows
        for rows, needed in needs.items()
        if needed.fits(card, "reference", "update") or needed.needs("reference", "update") == least
    )
    return replace(cut, microbatch=rows)


def cache_bytes(sizes: ModelSizes, rows: int, places: int) -> int:
    """Keys and values of `rows` rows of up to `places` tokens."""
    return 2 * sizes.layers * rows * places * sizes.kv_heads * sizes.head_dim * sizes.element


def rows_at_once(sizes: ModelSizes, shape: StepShape, card: int) -> int:
    """How many rollouts are decoded at once where no number is set: what their share of the free memory holds."""
    unset = replace(shape, max_rows=None)
    free = card - RESERVED - estimate(sizes, unset, StepCut()).constant
    return max(1, int(SHARE_OF_FREE_MEMORY * free) // cache_of_rollouts(decoding_sizes(sizes, shape), unset, 1))


def cache_of_rollouts(sizes: ModelSizes, shape: StepShape, rows: int) -> int:
    """The cache that both levels of `rows` rollouts use in turn: the image level's, both branches of guidance."""
    return max(
        cache_bytes(sizes, shape.branches(level) * rows, rounded_places(shape.contexts[level] + tokens))
        for level, tokens in ((PLAN, shape.plan_tokens), (IMAGE, sizes.image_tokens))
    )


def rollout_bytes(sizes: ModelSizes, shape: StepShape, rows: int) -> int:
    """Both levels sampled for `rows` rollouts at once, then painted: what stays, and the largest moment.

    What stays: the decoding form of the weights, the cache, the features of the guidance branch. Moments: reading the
    contexts (keys and values of each beside the cache), drawing a token, painting.
    """
    moments = [painting_bytes(sizes, rows)]
    for level in (PLAN, IMAGE):
        both, context = shape.branches(level), shape.contexts[level]
        reading = cache_bytes(sizes, both * rows, context) + inference_bytes(sizes, rows * context)
        # Logits of both branches; in plain torch also five rows in float64 (kernels/sampling.py), in Triton none.
        drawn = both * sizes.element + (0 if shape.fused_head else 5 * 2 * FLOAT)
        moments += [reading, rows * sizes.vocabularies[level] * drawn]
    kept = rows * sizes.image_tokens * sizes.features[IMAGE] * sizes.element if shape.guided else 0
    return decoder_bytes(sizes) + cache_of_rollouts(sizes, shape, rows) + kept + max(moments)


def decoder_bytes(sizes: ModelSizes) -> int:
    """The decoding form of the weights: a table of image embeddings, and the fused projections where merged."""
    table = sizes.vocabularies[IMAGE] * sizes.hidden
    return (table + (sizes.projections if sizes.merged else 0)) * sizes.element


def inference_bytes(sizes: ModelSizes, tokens: int) -> int:
    """Activations of one layer without a graph, at its fullest moment: inside the MLP, or at the attention."""
    width = sizes.heads * sizes.head_dim
    mlp = 2 * sizes.hidden + 4 * sizes.intermediate
    attention = 2 * sizes.hidden + 5 * width
    return tokens * max(mlp, attention) * sizes.element


def painting_bytes(sizes: ModelSizes, rows: int) -> int:
    """Decoding `rows` pictures: three maps of the last stage of the decoder, and the pixels in float32 twice."""
    pixels = rows * sizes.picture_side**2
    return pixels * (3 * sizes.picture_channels * sizes.element + 2 * 3 * FLOAT)


def head_bytes(sizes: ModelSizes, shape: StepShape, rows: int, level: str, graph: bool) -> int:
    """Statistics of a level's tokens from its features.

    Fused, the logits exist in chunks. Otherwise a token's row is there as logits, scaled logits and log-probs; with a
    graph once more in float32, for the entropy and then for the gradient.
    """
    tokens = rows * _tokens(sizes, shape, level)
    features = tokens * sizes.features[level] * FLOAT * (3 if graph else 2)
    if graph and level == PLAN and not sizes.lora:
        features += sizes.vocabularies[PLAN] * sizes.features[PLAN] * FLOAT  # the gradient of lm_head
    if shape.fused_head:
        return features + FUSED_HEAD
    rows_alive = _activation(sizes, shape) + (3 if graph else 2) * FLOAT
    return features + tokens * sizes.vocabularies[level] * rows_alive


def reference_bytes(sizes: ModelSizes, shape: StepShape, cut: StepCut) -> int:
    """Scoring rollouts under the reference, as many at a time as :meth:`StepCut.score_rows` says."""
    rows = min(cut.score_rows(shape.group_size) or shape.rollouts, shape.rollouts)
    needed = []
    for level in (PLAN, IMAGE):
        context, tokens = shape.contexts[level], _tokens(sizes, shape, level)
        cache = cache_bytes(sizes, rows, 2 * context + tokens)
        mask = rows * tokens * (context + tokens) * (1 + sizes.element)
        computing = max(inference_bytes(sizes, rows * tokens) + mask, head_bytes(sizes, shape, rows, level, False))
        needed.append(cache + computing)
    # The policy's own decoding form still exists beside the reference's.
    return 2 * decoder_bytes(sizes) + max(needed) + _kept_bytes(sizes, shape)


def update_bytes(sizes: ModelSizes, shape: StepShape, cut: StepCut) -> int:
    """Gradients with the activations of a microbatch, or with what AdamW needs in between, whichever is more."""
    rows = min(cut.microbatch or shape.rollouts, shape.rollouts)
    levels = [
        activation_bytes(sizes, shape, rows, level, cut.activation_checkpointing)
        + head_bytes(sizes, shape, rows, level, True)
        for level in (PLAN, IMAGE)
    ]
    # Autocast keeps the bf16 copies of the weights as long as the forward pass lasts, and the graph thereafter.
    casts = gathered_bytes(sizes, shape) if shape.sharded else sizes.projections * 2 if shape.mixed else 0
    passes = (max if cut.split_levels else sum)(levels) + casts
    embeddings = embedding_bytes(sizes) * (1 if cut.split_levels else 3)  # of both levels: two, and their sum
    kept = _kept_bytes(sizes, shape)
    own = own_bytes(sizes, shape)
    return own + max(passes + kept, embeddings + kept, own)


def embedding_bytes(sizes: ModelSizes) -> int:
    """The gradient of the token embeddings, made whole at the end of a backward pass, before it is added up."""
    return 0 if sizes.lora else sizes.vocabularies[PLAN] * sizes.hidden * sizes.trained_element


def _kept_bytes(sizes: ModelSizes, shape: StepShape) -> int:
    """What an experience keeps of all its rollouts: the guidance branch's features, the reference's for an exact KL."""
    branch = shape.guided and shape.guided_logp
    e = decoding_sizes(sizes, shape).element
    image = shape.rollouts * sizes.image_tokens * sizes.features[IMAGE] * e
    plan = shape.rollouts * shape.plan_tokens * sizes.features[PLAN] * e
    exact = (plan + image * (2 if branch else 1)) if shape.exact_kl else 0
    return (image if shape.guided else 0) + exact


def activation_bytes(sizes: ModelSizes, shape: StepShape, rows: int, level: str, checkpointing: bool) -> int:
    """What the trunk keeps of `rows` rows for the backward pass, and needs on top at its fullest moment.

    Without checkpointing every layer keeps :func:`layer_bytes`; with it the layer's input, and one layer at a time
    is computed again.
    """
    places = shape.contexts[level] + _tokens(sizes, shape, level) - 1
    tokens, e = rows * places, _activation(sizes, shape)
    layer = tokens * layer_bytes(sizes, shape)
    if shape.mask_per_layer:
        layer += rows * places * places * e
    stream = tokens * sizes.hidden * _stream(sizes)
    # Around the layers: embeddings, angles, the last norm, the image head's inner layer.
    ends = 4 * stream + 2 * tokens * sizes.head_dim * e + rows * places * places
    # Inside a layer's backward pass: gradients of the MLP's product along both paths, and of the stream.
    working = tokens * (sizes.intermediate * (e + (FLOAT if sizes.lora else e)) + 2 * sizes.hidden * _stream(sizes))
    return ends + working + (sizes.layers * stream + layer if checkpointing else sizes.layers * layer)


def layer_bytes(sizes: ModelSizes, shape: StepShape) -> int:
    """What one layer keeps of one token for the backward pass (transformers' Llama layer, PEFT's LoRA).

    | kept by | bytes |
    | --- | --- |
    | two norms | 2 (4 H + 4); trained also the normed input, 2 H s, s of the residual stream |
    | attention | query, key, value, output: 4 A e; the log-sum-exp: 4 heads |
    | gate, activation, up | 3 I e |
    | LoRA on a projection | its input in the adapter's dtype, shared only where nothing is cast; the rank |
    | trained projections | their input, shared only where nothing is cast; the attention's output is there already |
    """
    e, hidden, width = _activation(sizes, shape), sizes.hidden, sizes.heads * sizes.head_dim
    norms = 2 * (FLOAT * hidden + FLOAT)
    attention = 4 * width * e + FLOAT * sizes.heads
    mlp = 3 * sizes.intermediate * e
    if not sizes.lora:
        cast = _stream(sizes) != e
        norms += 2 * hidden * _stream(sizes)
        inputs = (5 if cast else 2) * hidden * e + sizes.intermediate * e
        return norms + attention + mlp + inputs
    a = sizes.trained_element
    cast = a != e
    inputs = 0
    for group in (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj")):
        copies = sum(name in sizes.lora for name in group)
        inputs += (copies if cast else min(copies, 1)) * hidden * a
    inputs += width * a if cast and "o_proj" in sizes.lora else 0
    inputs += sizes.intermediate * a if "down_proj" in sizes.lora else 0
    return norms + attention + mlp + inputs + sum(sizes.lora.values()) * a


def _tokens(sizes: ModelSizes, shape: StepShape, level: str) -> int:
    return shape.plan_tokens if level == PLAN else sizes.image_tokens


def _activation(sizes: ModelSizes, shape: StepShape) -> int:
    """Bytes of what a matrix product gives."""
    return 2 if shape.mixed else sizes.element


def _stream(sizes: ModelSizes) -> int:
    """Bytes of an element of the residual stream: that of the embeddings."""
    return sizes.element
