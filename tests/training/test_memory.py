"""The formulas of memory against measured bytes: exact where they count, within a stated bound where they model."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from src.policies.sizes import model_sizes
from src.rollout.levels import RolloutSettings, roll_out
from src.rollout.noise import group_keys
from src.training.memory import (
    GIB,
    MemoryEstimate,
    ModelSizes,
    StepCut,
    StepShape,
    activation_bytes,
    cache_bytes,
    choose_cut,
    decoder_bytes,
    embedding_bytes,
    estimate,
    head_bytes,
    layer_bytes,
    painting_bytes,
    reference_bytes,
    rollout_bytes,
)
from src.training.token_statistics import level_statistics, score_level
from src.values import IMAGE, LEVELS, PLAN, LevelOutput, Sampling, TokenContext, TokenLevel
from tests.memory_meter import AliveBytes, attention_as_on_a_gpu, kept_for_backward, storage_bytes
from tests.policies.published import published_policy
from tests.policies.tiny import tiny_policy
from tests.training.pieces import OPERATIONS

SHAPE = StepShape(
    rollouts=16,
    group_size=8,
    contexts={PLAN: 100, IMAGE: 356},
    plan_tokens=256,
    guided=True,
    guided_logp=True,
    reference=True,
    exact_kl=False,
    evaluation_rows=16,
    mixed=False,
    fused_head=True,
    mask_per_layer=True,
)


def level_of(policy: Any, name: str, rows: int, context: int, tokens: int) -> TokenLevel:
    """Any tokens, no padding, on the policy's device."""
    device, vocabulary = policy.device, model_sizes(policy).vocabularies[name]
    values = torch.zeros(rows, tokens, device=device)
    ids = torch.ones(rows, context, dtype=torch.int64, device=device)
    return TokenLevel(
        TokenContext(ids, ids.bool()),
        torch.full((rows, tokens), vocabulary - 1, device=device),
        torch.ones(rows, tokens, dtype=torch.bool, device=device),
        values,
        values,
        Sampling(),
    )


KINDS: dict[str, dict[str, Any]] = {
    "lora": {"lora": {"r": 4}},
    "lora bf16": {"lora": {"r": 4}, "dtype": torch.bfloat16},
    "some projections": {"lora": {"r": 4, "targets": ["q_proj", "v_proj", "up_proj"]}, "dtype": torch.bfloat16},
    "some, float32": {"lora": {"r": 4, "targets": ["v_proj", "o_proj"]}},
    "full": {"lora": None},
    "full bf16": {"lora": None, "dtype": torch.bfloat16},
    "mixed": {"lora": None},
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("hidden", [32, 96])
def test_a_layer_keeps_what_the_formula_says(kind: str, hidden: int) -> None:
    """To the byte: what a third layer adds to what autograd saves, per token, in two widths."""
    kept = []
    for layers in (2, 3):
        policy = tiny_policy(**KINDS[kind], hidden=hidden, layers=layers, kv_heads=4)
        level = level_of(policy, IMAGE, 2, 6, 9)
        with torch.autocast("cpu", torch.bfloat16, enabled=kind == "mixed"), kept_for_backward(policy) as tensors:
            policy({IMAGE: level})
        kept.append(storage_bytes(tensors))
    sizes, shape = model_sizes(policy), replace(SHAPE, mixed=kind == "mixed")
    # Autocast's bf16 copies of the weights are kept too, whatever the number of tokens.
    casts = 2 * sizes.projections // sizes.layers if kind == "mixed" else 0
    assert kept[1] - kept[0] == 2 * (6 + 9 - 1) * layer_bytes(sizes, shape) + casts


@pytest.mark.slow
@pytest.mark.parametrize("checkpointing", [True, False], ids=["checkpointed", "plain"])
@pytest.mark.parametrize(
    ("size", "lora", "dtype"),
    [
        ("7B", True, torch.bfloat16),
        ("1B", True, torch.bfloat16),
        ("1B", True, torch.float32),
        ("1B", False, torch.float32),
    ],
)
@pytest.mark.parametrize("name", LEVELS)
def test_the_activations_of_the_published_sizes(
    monkeypatch: pytest.MonkeyPatch, size: str, lora: bool, dtype: torch.dtype, checkpointing: bool, name: str
) -> None:
    """Forward and backward of two rows, storages counted without data: above by 10 % at most, below by 2 %."""
    monkeypatch.setattr(nn.functional, "scaled_dot_product_attention", attention_as_on_a_gpu)
    policy = published_policy(size, lora, dtype)
    if checkpointing:
        policy.checkpoint_activations()
    shape, sizes = SHAPE, model_sizes(policy)
    level = level_of(policy, name, 2, shape.contexts[name], 576 if name == IMAGE else 256)
    for parameter in policy.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.zeros_like(parameter)  # as in every part but the first
    with AliveBytes() as alive:
        features = policy({name: level})[name].features
        features.backward(torch.ones_like(features))
    formula = max(activation_bytes(sizes, shape, 2, name, checkpointing), embedding_bytes(sizes))
    assert 0.98 * alive.peak < formula < 1.1 * alive.peak, (formula / GIB, alive.peak / GIB)


@pytest.mark.parametrize("wide", [False, True])
def test_the_head_without_chunks(wide: bool) -> None:
    policy = tiny_policy(vocabulary=4096 if wide else 512)
    sizes, level = model_sizes(policy), replace(level_of(policy, PLAN, 4, 3, 20), sampling=Sampling(0.9))
    shape = replace(SHAPE, fused_head=False, plan_tokens=20)
    output = LevelOutput(torch.randn(4, 20, 32, requires_grad=True), policy.decoder().head(PLAN))
    with AliveBytes() as alive:
        level_statistics(OPERATIONS, output, level, True, entropy=True).logp.sum().backward()
    assert 0.95 * alive.peak < head_bytes(sizes, shape, 4, PLAN, True) < 1.25 * alive.peak


@pytest.mark.parametrize(
    ("hidden", "layers", "vocabulary", "dtype"),
    [(128, 4, 512, torch.float32), (96, 6, 2048, torch.float32), (128, 4, 512, torch.bfloat16)],
)
def test_rollouts_and_scoring(hidden: int, layers: int, vocabulary: int, dtype: torch.dtype) -> None:
    """Real decoding of eight rollouts, unfused head: not below by more than 5 %, above by 50 % at most."""
    policy = tiny_policy(
        hidden=hidden, layers=layers, kv_heads=4, vocabulary=vocabulary, codes=256, side=6, dtype=dtype
    )
    prompts = ["a red circle", "two blue square left of a green circle"] * 4
    settings = RolloutSettings(Sampling(), Sampling(1.0, 2.0), 24)
    policy.decoder()  # in half precision this puts the weights together, once, and stays
    with AliveBytes() as alive:
        rollouts = roll_out(policy, policy.decoder(), prompts, group_keys(0, "train", 0, range(8), 1), settings)
    contexts = {name: level.context.ids.shape[1] for name, level in rollouts.levels.items()}
    sizes = model_sizes(policy)
    shape = replace(
        SHAPE, rollouts=8, group_size=1, contexts=contexts, plan_tokens=rollouts.levels[PLAN].ids.shape[1],
        fused_head=False, mask_per_layer=False,
    )  # fmt: skip
    there_before = 0 if sizes.merged else decoder_bytes(sizes)
    assert 0.95 * alive.peak < rollout_bytes(sizes, shape, 8) - there_before < 1.5 * alive.peak
    for rows in (None, 4):
        with AliveBytes() as alive:
            kept = policy.decoder()
            with policy.reference() as reference:
                for name, level in rollouts.levels.items():
                    score_level(OPERATIONS, reference, name, level, True, rows)
            del kept
        assert 0.95 * alive.peak < reference_bytes(sizes, shape, StepCut(rows)) < 1.5 * alive.peak


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_painting_at_the_published_size(dtype: torch.dtype) -> None:
    policy = published_policy("1B", dtype=dtype)
    with AliveBytes() as alive:
        policy.paint(torch.zeros(2, 576, dtype=torch.int64, device="meta"))
    assert painting_bytes(model_sizes(policy), 2) == pytest.approx(alive.peak, rel=0.05)


def test_the_cache_is_the_decoders() -> None:
    policy = tiny_policy()
    level = level_of(policy, IMAGE, 3, 5, 9)
    state, _ = policy.decoder().start(IMAGE, level.context, 9)
    kept = sum(x.untyped_storage().nbytes() for x in (state.keys, state.values))
    assert cache_bytes(model_sizes(policy), 3, 64) == kept, "14 places, rounded up"


@pytest.fixture(scope="module")
def sizes_7b() -> ModelSizes:
    return model_sizes(published_policy("7B"))


def test_a_7b_step_fits_into_40_gib(sizes_7b: ModelSizes) -> None:
    """Sixteen rollouts in groups of eight, 576 image tokens, plans up to 256: LoRA, found by itself."""
    card = 40 * GIB
    cut = choose_cut(sizes_7b, SHAPE, None, None, None, card)
    assert cut == StepCut(8, True, True)
    needed = estimate(sizes_7b, SHAPE, cut)
    assert needed.fits(card)
    assert not estimate(sizes_7b, SHAPE, StepCut()).fits(2 * card), "uncut, not even in 80"
    by_hand = 32 * (356 + 576) * 30 * 2 * 4096 * 2
    assert cache_bytes(sizes_7b, 32, 356 + 576) == by_hand


def test_what_is_given_is_kept(sizes_7b: ModelSizes) -> None:
    for card in (None, 24 * GIB, 40 * GIB, 1000 * GIB):
        assert choose_cut(sizes_7b, SHAPE, 3, False, False, card) == StepCut(3, False, False)
        assert choose_cut(sizes_7b, SHAPE, 3, True, True, card) == StepCut(3, True, True)


def test_a_cpu_cuts_nothing_unasked(sizes_7b: ModelSizes) -> None:
    assert choose_cut(sizes_7b, SHAPE, None, None, None, None) == StepCut()
    assert choose_cut(sizes_7b, SHAPE, None, None, True, None) == StepCut(None, True, True)


def test_smaller_cards_get_smaller_cuts(sizes_7b: ModelSizes) -> None:
    """Nothing on a huge one, then checkpoints, then ever fewer rollouts; at the end one, whether it fits or not."""
    shape, rows = replace(SHAPE, reference=False), []
    for gib in (400, 44, 36, 35, 33, 2):
        cut = choose_cut(sizes_7b, shape, None, None, None, gib * GIB)
        assert cut.split_levels == cut.activation_checkpointing == (gib < 400)
        rows.append(cut.microbatch or shape.rollouts)
    assert rows[0] == rows[1] == 16
    assert rows == sorted(rows, reverse=True)
    assert len(set(rows)) > 2
    assert rows[-1] == 1
    assert choose_cut(sizes_7b, SHAPE, None, None, None, 2 * GIB).microbatch == 8, "the reference takes a group at once"


def test_nothing_is_cut_to_no_purpose() -> None:
    """Full fine-tuning of 1B: AdamW's needs do not shrink with the microbatch, so below eight nothing is won."""
    sizes = model_sizes(published_policy("1B", lora=False))
    shape = replace(SHAPE, reference=False, mixed=True)
    cut = choose_cut(sizes, shape, None, None, None, 30 * GIB)
    assert cut.microbatch == 8
    assert not estimate(sizes, shape, cut).fits(30 * GIB, "update")
    least, most = (estimate(sizes, shape, replace(cut, microbatch=rows)).phases["update"] for rows in (1, 16))
    assert least == estimate(sizes, shape, cut).phases["update"] < most


def test_every_size_makes_it_more(sizes_7b: ModelSizes) -> None:
    cut = StepCut(2, True, True)
    least = estimate(sizes_7b, SHAPE, cut)
    for name, value in {
        "rollouts": 32, "contexts": {PLAN: 200, IMAGE: 612}, "exact_kl": True,
        "evaluation_rows": 128, "expert_bytes": GIB, "processes": 2,
    }.items():  # fmt: skip
        more = estimate(sizes_7b, replace(SHAPE, **{name: value}), cut)
        assert more.constant + sum(more.phases.values()) > least.constant + sum(least.phases.values()), name
    assert estimate(sizes_7b, replace(SHAPE, reference=False), cut).phases["reference"] == 0
    assert cut.score_rows(8) == 8
    assert StepCut(20).score_rows(8) == 20
    assert StepCut().score_rows(8) is None


def test_the_line_that_is_said() -> None:
    needed = MemoryEstimate(14 * GIB, GIB, 2 * GIB, {"rollout": 3 * GIB, "update": 5 * GIB})
    assert needed.largest == "update"
    assert needed.needs() == 22 * GIB
    assert needed.needs("rollout") == 20 * GIB
    assert needed.described(40 * GIB) == (
        "memory: needs ~22.0 GiB (weights 14.0, optimiser 1.0, experts 2.0, and the largest of: rollout 3.0,"
        " update 5.0), the card has 40.0"
    )
    assert needed.fits(25 * GIB)
    assert not needed.fits(24 * GIB), "23 with the reserve, of 22.8 that are usable"
