"""Both levels of a rollout: what is kept equals what the weights say, and where neighbours do not matter."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from src.policies.base import Decoder, Policy
from src.rollout.decode import decode
from src.rollout.levels import Rollouts, RolloutSettings, roll_out
from src.rollout.noise import RolloutKey, group_keys, uniforms
from src.values import IMAGE, PLAN, Sampling, TokenLevel
from tests.policies.oracle import level_logits
from tests.policies.tiny import exact_policy, tiny_policy
from tests.policies.toy import ToyPolicy

PROMPTS = ("a red circle", "two blue square left of a green circle", "one triangle .")
GUIDED = RolloutSettings(plan=Sampling(0.8), image=Sampling(0.9, 3.0), max_plan_tokens=12)
PLAIN = RolloutSettings(plan=Sampling(), image=Sampling(), max_plan_tokens=12)
GROUP = 6
# Policies here are float64; log-probs and pixels are kept in float32, and one last place may tip over.
KEPT = 2.0**-23


def rolled(policy: Any, settings: RolloutSettings, rows: list[int] | None = None) -> Rollouts:
    """Groups of all prompts, or only the chosen rows of them, each with the key it has in the whole."""
    prompts = [prompt for prompt in PROMPTS for _ in range(GROUP)]
    keys = group_keys(0, "train", 0, range(len(PROMPTS)), GROUP)
    rows = list(range(len(prompts))) if rows is None else rows
    return roll_out(policy, policy.decoder(), [prompts[i] for i in rows], [keys[i] for i in rows], settings)


@pytest.fixture(scope="module")
def janus() -> Any:
    return exact_policy()


@pytest.fixture(scope="module", params=["janus", "toy"])
def policy(request: pytest.FixtureRequest) -> Any:
    return exact_policy() if request.param == "janus" else ToyPolicy(dtype=torch.float64)


@pytest.fixture(scope="module", params=[GUIDED, PLAIN], ids=["guided", "plain"])
def settings(request: pytest.FixtureRequest) -> RolloutSettings:
    return request.param


def counted(level: TokenLevel, row: int) -> tuple[list[int], Tensor, Tensor]:
    keep = level.mask[row]
    return level.ids[row][keep].tolist(), level.rollout_logp[row][keep], level.conditional_logp[row][keep]


@pytest.mark.parametrize("rows", [[0], [7], [17], [3, 9, 15], list(range(17, -1, -1)), [12, 0, 12, 5]])
def test_a_rollout_does_not_change_with_its_neighbours(policy: Any, settings: RolloutSettings, rows: list[int]) -> None:
    whole, part = rolled(policy, settings), rolled(policy, settings, rows)
    for place, row in enumerate(rows):
        assert part.plans[place] == whole.plans[row]
        assert part.ended[place] == whole.ended[row]
        torch.testing.assert_close(part.pixels[place], whole.pixels[row], atol=KEPT, rtol=0)
        for name in (PLAN, IMAGE):
            ids, logp, conditional = counted(part.levels[name], place)
            same_ids, same_logp, same_conditional = counted(whole.levels[name], row)
            assert ids == same_ids
            torch.testing.assert_close(logp, same_logp, atol=0, rtol=KEPT)
            torch.testing.assert_close(conditional, same_conditional, atol=0, rtol=KEPT)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("form", [{}, {"merge_rollout": True}, {"lora": None}], ids=["default", "merged", "full"])
def test_one_row_at_a_time_neighbours_change_no_bit(dtype: torch.dtype, form: dict[str, Any]) -> None:
    """In any dtype: no product and no sum of a row has another shape for its neighbours' sake.

    Decoded together, rounding may depend on their number and lengths; in bf16 it is coarse enough for other tokens.
    """
    policy = tiny_policy(dtype=dtype, **form)
    settings = RolloutSettings(Sampling(), Sampling(1.0, 5.0), max_plan_tokens=12, max_rows=1)
    whole = rolled(policy, settings)
    for rows in ([7], [12, 0, 12, 5], list(range(17, -1, -1))):
        part = rolled(policy, settings, rows)
        assert part.plans == [whole.plans[row] for row in rows]
        for name, place in product((PLAN, IMAGE), range(len(rows))):
            ids, logp, conditional = counted(part.levels[name], place)
            same_ids, same_logp, same_conditional = counted(whole.levels[name], rows[place])
            assert ids == same_ids
            assert torch.equal(logp, same_logp)
            assert torch.equal(conditional, same_conditional)


def test_rollouts_of_a_group_differ_and_steps_differ(policy: Any) -> None:
    level = rolled(policy, PLAIN).levels[IMAGE]
    assert torch.unique(level.ids[:GROUP], dim=0).shape[0] > 1
    other = roll_out(
        policy, policy.decoder(), PROMPTS[:1] * GROUP, group_keys(0, "train", 1, [0], GROUP), PLAIN
    ).levels[IMAGE]
    assert not torch.equal(other.ids, level.ids[:GROUP])


def oracle_logits(policy: Any, name: str, level: TokenLevel) -> tuple[Tensor, Tensor | None]:
    """Conditional and unconditional logits in float64, from transformers' modules; the branch built by hand here."""
    with torch.no_grad():
        c = level_logits(policy.janus, name, level.context, level.ids).double()
        if not level.sampling.guided:
            return c, None
        branch_ids = level.context.ids.clone()
        for row, mask in zip(branch_ids, level.context.mask, strict=True):
            real = mask.nonzero().flatten()
            row[real[1:-1]] = policy.tokenizer.pad_token_id
        assert level.unconditional is not None
        u = level_logits(policy.janus, name, type(level.context)(branch_ids, level.context.mask), level.ids).double()
        return c, u


@pytest.mark.parametrize("kind", [{}, {"merge_rollout": False}, {"lora": None}], ids=["merged", "unmerged", "full"])
def test_kept_log_probs_and_tokens_are_those_of_the_weights(kind: dict[str, Any], settings: RolloutSettings) -> None:
    """The sampler's log-probs against transformers' full forward, and its tokens against inverse CDF in float64."""
    policy = exact_policy(**kind)
    rollouts = rolled(policy, settings)
    keys = group_keys(0, "train", 0, range(len(PROMPTS)), GROUP)
    for name, level in rollouts.levels.items():
        c, u = oracle_logits(policy, name, level)
        tau, w = level.sampling.temperature, level.sampling.guidance_scale
        mixed = (c if u is None else u + w * (c - u)) / tau
        logp = mixed.log_softmax(-1)
        chosen = logp.gather(-1, level.ids[..., None]).squeeze(-1)
        conditional = (c / tau).log_softmax(-1).gather(-1, level.ids[..., None]).squeeze(-1)
        mask = level.mask
        torch.testing.assert_close(level.rollout_logp[mask].double(), chosen[mask], atol=1e-10, rtol=KEPT)
        torch.testing.assert_close(level.conditional_logp[mask].double(), conditional[mask], atol=1e-10, rtol=KEPT)
        assert (level.rollout_logp[~mask] == 0).all()
        uniform = uniforms(keys, name, level.ids.shape[1])
        cumulative = logp.exp().cumsum(-1)
        expected = (cumulative <= uniform[..., None]).sum(-1)
        assert ((cumulative - uniform[..., None]).abs().amin(-1) > 1e-10).all(), "no uniform on a step of the CDF"
        assert torch.equal(level.ids[mask], expected[mask])


def test_guidance_changes_the_log_probs(janus: Any) -> None:
    level = rolled(janus, GUIDED).levels[IMAGE]
    assert (level.rollout_logp - level.conditional_logp).abs().max() > 0.1
    plan = rolled(janus, GUIDED).levels[PLAN]
    assert torch.equal(plan.rollout_logp, plan.conditional_logp)
    assert plan.unconditional is None


def test_kept_features_of_the_guidance_branch_are_recomputed_ones(policy: Any) -> None:
    level = rolled(policy, GUIDED).levels[IMAGE]
    assert level.unconditional is not None
    again = policy.decoder().evaluate(IMAGE, level.unconditional, level.ids)
    torch.testing.assert_close(level.unconditional_features, again, atol=1e-10, rtol=0)


def test_no_guidance_branch_without_guidance(policy: Any) -> None:
    level = rolled(policy, PLAIN).levels[IMAGE]
    assert level.unconditional is None
    assert level.unconditional_features is None
    assert torch.equal(level.rollout_logp, level.conditional_logp)


def test_a_plan_ends_with_its_first_end_token(policy: Any) -> None:
    """The mask counts tokens up to and including the first end token; what follows is filled with it."""
    prompts = list(PROMPTS) * 30
    keys = [RolloutKey(0, "train", 0, i, 0) for i in range(len(prompts))]
    rollouts = roll_out(policy, policy.decoder(), prompts, keys, PLAIN)
    level, ended = rollouts.levels[PLAN], rollouts.ended
    assert ended.any()
    if isinstance(policy, ToyPolicy):
        assert ended.float().mean() > 0.5
    for row in range(len(prompts)):
        ids = level.ids[row].tolist()
        first = ids.index(policy.end_id) if policy.end_id in ids else None
        length = PLAIN.max_plan_tokens if first is None else first + 1
        assert level.mask[row].tolist() == [t < length for t in range(len(ids))]
        assert bool(ended[row]) == (first is not None)
        assert set(ids[length:]) <= {policy.end_id}
        assert (level.rollout_logp[row, length:] == 0).all()
    assert level.ids.shape[1] == int(level.mask.sum(1).max()), "cut to the longest row"
    assert rollouts.levels[IMAGE].mask.all()
    assert rollouts.levels[IMAGE].ids.shape[1] == policy.image_tokens


def test_the_cap_counts_the_end_token(policy: Any) -> None:
    settings = RolloutSettings(Sampling(), Sampling(), max_plan_tokens=1)
    rollouts = rolled(policy, settings)
    assert rollouts.levels[PLAN].ids.shape == (len(PROMPTS) * GROUP, 1)
    assert torch.equal(rollouts.ended, rollouts.levels[PLAN].ids[:, 0] == policy.end_id)


def test_the_image_continues_prompt_and_plan(janus: Any) -> None:
    """The plan reaches the image level as text, after the prompt and one full stop."""
    rollouts = rolled(janus, PLAIN)
    level = rollouts.levels[IMAGE]
    for row, plan in enumerate(rollouts.plans):
        prompt = PROMPTS[row // GROUP]
        stem = prompt.removesuffix(".").strip() if plan else prompt
        text = f"{stem}{' . ' + plan if plan else ''} ->"
        words = janus.tokenizer.convert_ids_to_tokens(level.context.ids[row][level.context.mask[row]].tolist())
        assert words[1:-1] == text.split()
        assert words[-1] == "<begin_of_image>"


def test_pixels_are_the_painted_image_tokens(policy: Any) -> None:
    rollouts = rolled(policy, PLAIN)
    assert torch.equal(rollouts.pixels, policy.paint(rollouts.levels[IMAGE].ids))
    assert rollouts.pixels.min() >= 0
    assert rollouts.pixels.max() <= 1


def test_guided_sampling_needs_the_branch(policy: Any) -> None:
    context = policy.plan_context(PROMPTS)
    with pytest.raises(ValueError, match=r"guidance_scale=2\.0 needs an unconditional context"):
        decode(policy.decoder(), IMAGE, context, torch.rand(3, 4, dtype=torch.float64), Sampling(1.0, 2.0))


def test_nothing_kept_has_a_graph(policy: Any) -> None:
    for level in rolled(policy, GUIDED).levels.values():
        for value in (level.rollout_logp, level.conditional_logp, level.unconditional_features):
            assert value is None or not value.requires_grad


def test_the_toy_satisfies_the_protocols() -> None:
    toy = ToyPolicy()
    assert isinstance(toy, Policy)
    assert isinstance(toy.decoder(), Decoder)
