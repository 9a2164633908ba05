"""Rollouts end to end: against transformers' own generate, against training's log-probs, split and early-ended."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from kernels import operations
from src.policies.base import EngineSettings
from src.rollout import decode as decode_module
from src.rollout.decode import decode
from src.rollout.levels import Rollouts, RolloutSettings, roll_out
from src.rollout.noise import group_keys, uniforms
from src.rollout.rows import row_limit, spans
from src.training.token_statistics import level_statistics, score_level
from src.values import IMAGE, PLAN, Sampling, TokenContext
from tests.policies.tiny import exact_norms, exact_policy, tiny_janus, tiny_policy
from tests.policies.toy import ToyPolicy

PROMPTS = ("a red circle", "two blue square left of a green circle", "one triangle .")
GUIDED = RolloutSettings(plan=Sampling(0.8), image=Sampling(0.9, 3.0), max_plan_tokens=12)
PLAIN = RolloutSettings(plan=Sampling(), image=Sampling(), max_plan_tokens=12)
STRONG = replace(PLAIN, image=Sampling(1.0, 5.0))
GROUP = 4
# Float64 policies; log-probs are kept in float32, and one last place may tip over.
KEPT = 2.0**-23


def rolled(policy: Any, settings: RolloutSettings) -> Rollouts:
    prompts = [prompt for prompt in PROMPTS for _ in range(GROUP)]
    return roll_out(policy, policy.decoder(), prompts, group_keys(0, "train", 0, range(3), GROUP), settings)


def assert_same(one: Rollouts, other: Rollouts, tolerance: float = KEPT) -> None:
    """The same tokens, and log-probs that differ by rounding at most."""
    assert one.plans == other.plans
    for name in (PLAN, IMAGE):
        a, b = one.levels[name], other.levels[name]
        assert torch.equal(a.ids, b.ids)
        assert torch.equal(a.mask, b.mask)
        assert torch.equal(a.context.ids, b.context.ids)
        assert torch.equal(a.context.mask, b.context.mask)
        torch.testing.assert_close(a.rollout_logp, b.rollout_logp, atol=0, rtol=tolerance)
        torch.testing.assert_close(a.conditional_logp, b.conditional_logp, atol=0, rtol=tolerance)
        assert (a.unconditional is None) == (b.unconditional is None)
        if a.unconditional is not None and b.unconditional is not None:
            assert torch.equal(a.unconditional.ids, b.unconditional.ids)
            mine, theirs = a.unconditional_features, b.unconditional_features
            torch.testing.assert_close(mine, theirs, atol=tolerance, rtol=tolerance)


# --- against transformers' own generation ---------------------------------------------------------------


@pytest.mark.parametrize("scale", [1.5, 5.0])
@pytest.mark.parametrize("merge", [None, False])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_coldest_rollout_is_transformers_greedy_generation(seed: int, merge: bool | None, scale: float) -> None:
    """Rows of one length: where nothing is padded, transformers' guidance branch is the released code's.

    (Without guidance transformers' generation fails on the branch it still makes.)
    """
    policy = tiny_policy(seed=seed, merge_rollout=merge)
    context = policy.image_context(["a red circle", "one blue square", "two green triangle"], ["", "", ""])
    assert bool(context.mask.all())
    janus = policy.janus
    janus.generation_config.generation_kwargs = {"boi_token_id": policy.begin_of_image_id}
    theirs = janus.generate(
        context.ids,
        attention_mask=context.mask.long(),
        generation_mode="image",
        do_sample=False,
        guidance_scale=scale,
        bos_token_id=policy.tokenizer.bos_token_id,
        pad_token_id=policy.pad_id,
        eos_token_id=policy.end_id,
    )
    sampling = Sampling(1e-5, scale)
    branch = policy.unconditional(context)
    noise = torch.rand((3, policy.image_tokens), dtype=torch.float64)
    ours = decode(policy.decoder(), IMAGE, context, noise, sampling, branch)
    assert torch.equal(ours.ids, theirs)
    assert ours.ids.unique().numel() > 3, "a model that always says the same would prove nothing"


# --- against training -----------------------------------------------------------------------------------


def mismatch(policy: Any, level: str, rollouts: Rollouts) -> Tensor:
    """Sampler's minus training's log-probs of the sampled tokens, those that count."""
    tokens = rollouts.levels[level]
    output = policy({level: tokens})[level]
    with torch.no_grad():
        trained = level_statistics(operations("torch", "cpu"), output, tokens, guided=True).logp
    return (tokens.rollout_logp - trained)[tokens.mask]


@pytest.mark.parametrize("level", [PLAN, IMAGE])
@pytest.mark.parametrize("settings", [GUIDED, PLAIN], ids=["guided", "plain"])
@pytest.mark.parametrize("merge", [True, False])
def test_rollout_log_probs_are_trainings(merge: bool | None, settings: RolloutSettings, level: str) -> None:
    policy = exact_policy(merge_rollout=merge)
    rollouts = rolled(policy, settings)
    assert rollouts.levels[level].context.mask.sum(1).unique().numel() > 1, "ragged contexts"
    tokens = rollouts.levels[level]
    assert (mismatch(policy, level, rollouts) / tokens.rollout_logp[tokens.mask]).abs().max() < KEPT


@pytest.mark.parametrize("rows", [None, 5, 1])
@pytest.mark.parametrize(("settings", "level"), [(PLAIN, PLAN), (PLAIN, IMAGE), (STRONG, IMAGE)])
def test_in_bfloat16_they_differ_by_its_rounding_alone(settings: RolloutSettings, level: str, rows: int | None) -> None:
    """Both are 8-bit mantissas' roundings of one number: no farther apart than training is from float32, 1.5 times.

    However many rows are decoded at once: that may change which tokens are drawn, never whose log-probs are kept.
    The weights of this model are far larger than a trained one's, so that tokens differ; the rounding is, too.
    """
    policy, ops = tiny_policy(dtype=torch.bfloat16), operations("torch", "cpu")
    rollouts = rolled(policy, replace(settings, max_rows=rows))
    error = mismatch(policy, level, rollouts)
    tokens = rollouts.levels[level]
    coarse = policy({level: tokens})[level]
    with torch.no_grad():
        trained = level_statistics(ops, coarse, tokens, guided=True).logp
        exact = score_level(ops, policy.float().decoder(), level, tokens, guided=True).logp
    rounding = (trained - exact)[tokens.mask].abs()
    assert rounding.mean() > 1e-3, "bf16 shall be what is tested here"
    assert error.abs().mean() < 1.5 * rounding.mean()
    assert error.abs().max() < 2 * rounding.max()
    assert error.mean().abs() < rounding.mean() / 2, "and to no side"


# --- settings change how, not what ----------------------------------------------------------------------

SWITCHES = ("shared_prefix", "fused_projections", "fused_step", "fused_sampling", "filled_attention", "reuse_cache")


@pytest.mark.parametrize("switch", SWITCHES)
@pytest.mark.parametrize("kind", [{}, {"merge_rollout": False}], ids=["merged", "in place"])
def test_each_switch_alone_changes_nothing_that_is_sampled(kind: dict[str, Any], switch: str) -> None:
    policy = exact_policy(**kind)
    on = rolled(policy, GUIDED)
    policy.engine = replace(EngineSettings(), **{switch: False})
    assert_same(rolled(policy, GUIDED), on)


@pytest.mark.parametrize("switch", [None, "fused_step", "fused_sampling", "filled_attention"])
def test_triton_and_torch_sample_the_same(switch: str | None) -> None:
    """The kernels interpreted; with a switch off, torch's operation stands between the kernels' others."""
    policy = tiny_policy(merge_rollout=False, layers=1, side=2, codes=11, hidden=16)
    prompts, keys = PROMPTS[1:], group_keys(0, "train", 0, [1, 2], 1)
    short = replace(GUIDED, max_plan_tokens=2)
    plain = roll_out(policy, policy.decoder(), prompts, keys, short)
    policy.engine = replace(EngineSettings(kernels="triton"), **({} if switch is None else {switch: False}))
    assert_same(roll_out(policy, policy.decoder(), prompts, keys, short), plain, tolerance=1e-4)


@pytest.mark.parametrize("settings", [GUIDED, PLAIN], ids=["guided", "plain"])
@pytest.mark.parametrize("policy", [exact_policy(), ToyPolicy(dtype=torch.float64)], ids=["janus", "toy"])
def test_however_rows_are_split_the_result_is_the_same(policy: Any, settings: RolloutSettings) -> None:
    whole = rolled(policy, settings)
    for limit in (1, 5, 11, 12, 100):
        assert_same(rolled(policy, replace(settings, max_rows=limit)), whole)


def test_split_rows_that_end_at_different_times_are_joined_with_the_end_token() -> None:
    policy = ToyPolicy()
    settings = replace(PLAIN, max_rows=2)
    whole, split = rolled(policy, PLAIN), rolled(policy, settings)
    lengths = whole.levels[PLAN].mask.sum(1).view(-1, 2).amax(1)
    assert lengths.unique().numel() > 1, "parts of different lengths"
    assert torch.equal(whole.levels[PLAN].ids, split.levels[PLAN].ids)


class CountingDecoder:
    """A toy decoder that counts its tokens and the rows it is given at once."""

    def __init__(self, policy: ToyPolicy) -> None:
        self.inner = policy.decoder()
        self.advanced = 0
        self.rows: list[int] = []

    def start(self, level: str, context: TokenContext, steps: int) -> Any:
        self.rows.append(len(context))
        return self.inner.start(level, context, steps)

    def advance(self, state: Any, ids: Tensor) -> Tensor:
        self.advanced += 1
        return self.inner.advance(state, ids)

    def evaluate(self, level: str, context: TokenContext, ids: Tensor) -> Tensor:
        return self.inner.evaluate(level, context, ids)

    def head(self, level: str) -> Any:
        return self.inner.head(level)


@pytest.mark.parametrize("every", [1, 3, 16, 1000])
def test_looking_seldom_whether_all_have_ended_changes_nothing(every: int, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = ToyPolicy()
    context = policy.plan_context(PROMPTS)
    noise = uniforms(group_keys(0, "train", 0, range(3), 1), PLAN, 200)

    def plans() -> tuple[Any, int]:
        decoder = CountingDecoder(policy)
        return decode(decoder, PLAN, context, noise, Sampling(), end_id=policy.end_id), decoder.advanced

    often, fewest = plans()
    length = often.ids.shape[1]
    assert 3 < length < 100, "all end, and not at once"
    assert fewest == length - 1
    monkeypatch.setitem(decode_module.LOOK_EVERY, "cpu", every)
    seldom, advanced = plans()
    assert torch.equal(seldom.ids, often.ids)
    assert torch.equal(seldom.mask, often.mask)
    assert torch.equal(seldom.rollout_logp, often.rollout_logp)
    assert advanced == min(-(-length // every) * every, 200) - 1


@pytest.mark.parametrize(
    ("rows", "limit", "sizes"), [(7, 7, [7]), (7, 3, [3, 2, 2]), (8, 3, [3, 3, 2]), (3, 1, [1] * 3)]
)
def test_spans_are_few_and_even(rows: int, limit: int, sizes: list[int]) -> None:
    made = spans(rows, limit)
    assert [span.stop - span.start for span in made] == sizes
    assert [span.start for span in made[1:]] == [span.stop for span in made[:-1]]
    assert (made[0].start, made[-1].stop) == (0, rows)


def test_the_split_follows_the_setting_or_else_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    toy, janus = ToyPolicy().decoder(), tiny_policy().decoder()
    assert (
        row_limit(toy, IMAGE, None, 100, branches=2) == row_limit(janus, IMAGE, None, 100, branches=2) == float("inf")
    )
    assert row_limit(janus, IMAGE, 3, 100, branches=2) == 3
    monkeypatch.setattr(type(janus), "rows_that_fit", lambda self, level, places: 1000 // places)
    assert row_limit(janus, IMAGE, None, 100, branches=1) == 10
    assert row_limit(janus, IMAGE, None, 100, branches=2) == 5, "guidance takes two rows of the cache"
    assert row_limit(janus, IMAGE, None, 900, branches=2) == 1
    assert row_limit(toy, IMAGE, None, 900, branches=2) == float("inf")


def test_a_decoder_is_given_no_more_rows_than_the_limit() -> None:
    decoder, policy = CountingDecoder(ToyPolicy()), ToyPolicy()
    context = policy.image_context(list(PROMPTS), ["a"] * 3)
    decode(
        decoder,
        IMAGE,
        context,
        torch.rand((3, 4), dtype=torch.float64),
        Sampling(1.0, 2.0),
        policy.unconditional(context),
        max_rows=2,
    )
    assert decoder.rows == [4, 2], "two rollouts and their branch, then one"


# --- long images ----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_an_image_of_4096_tokens() -> None:
    """64 x 64 tokens, seven times Janus-Pro's: the cache, its angles and the tables reach as far as asked."""
    from src.policies.janus import JanusPolicy
    from tests.policies.tiny import templated_tokenizer

    policy = JanusPolicy(tiny_janus(side=64, layers=1, hidden=16, heads=2, dtype=torch.float64), templated_tokenizer())
    exact_norms(policy)
    assert policy.image_tokens == 4096
    context = policy.image_context(["a red circle"], ["blue"])
    noise = uniforms(group_keys(0, "train", 0, [0], 1), IMAGE, 4096)
    level = decode(policy.decoder(), IMAGE, context, noise, Sampling(1.0, 2.0), policy.unconditional(context))
    assert level.ids.shape == (1, 4096)
    output = policy({IMAGE: level})[IMAGE]
    with torch.no_grad():
        trained = level_statistics(operations("torch", "cpu"), output, level, guided=True).logp
    assert ((level.rollout_logp - trained) / trained).abs().max() < KEPT
    assert level.ids.unique().numel() > 10
