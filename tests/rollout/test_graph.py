"""The token step captured once and replayed gives what running it eagerly gives; nothing in it needs the host."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from src.policies.base import EngineSettings
from src.rollout import decode as decode_module
from src.rollout import graph
from src.rollout.graph import Step
from src.rollout.levels import Rollouts, RolloutSettings, roll_out, sample_plans
from src.rollout.noise import group_keys
from src.values import IMAGE, PLAN, Sampling
from tests.policies.tiny import tiny_policy
from tests.policies.toy import ToyPolicy
from tests.rollout.recorder import HostNeeded, record

PROMPTS = ("a red circle", "two blue square left of a green circle", "one triangle .")
GUIDED = RolloutSettings(plan=Sampling(0.8), image=Sampling(0.9, 3.0), max_plan_tokens=12)
PLAIN = RolloutSettings(plan=Sampling(), image=Sampling(), max_plan_tokens=20)
TRUNCATED = RolloutSettings(plan=Sampling(0.8, top_k=9), image=Sampling(0.9, 3.0, top_p=0.8), max_plan_tokens=12)
KINDS: dict[str, dict[str, Any]] = {
    "in place": {"merge_rollout": False},
    "in place bf16": {"dtype": torch.bfloat16},
    "merged": {},
    "full": {"lora": None, "merge_rollout": False},
}


class Captures:
    """Stands in for CUDA: how often something was captured."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, step: Step, reset: Step) -> Step:
        self.count += 1
        return record(step, reset)


@pytest.fixture
def captures(monkeypatch: pytest.MonkeyPatch) -> Captures:
    made = Captures()
    monkeypatch.setitem(graph.CAPTURES, "cpu", made)
    return made


def rolled(policy: Any, settings: RolloutSettings, step: int = 0, group: int = 4) -> Rollouts:
    prompts = [prompt for prompt in PROMPTS for _ in range(group)]
    return roll_out(policy, policy.decoder(), prompts, group_keys(0, "train", step, range(3), group), settings)


def whole_cache(policy: Any, graph: bool) -> Any:
    """The policy set so that eager and captured steps look at equally many places: else sums differ by rounding."""
    policy.engine = EngineSettings(graph=graph, filled_attention=False)
    return policy


def assert_same(one: Rollouts, other: Rollouts) -> None:
    assert one.plans == other.plans
    for name in (PLAN, IMAGE):
        a, b = one.levels[name], other.levels[name]
        for field in ("ids", "mask", "rollout_logp", "conditional_logp", "unconditional_features"):
            x, y = getattr(a, field), getattr(b, field)
            assert (x is None) == (y is None)
            assert x is None or torch.equal(x, y), (name, field)


@pytest.mark.parametrize("settings", [GUIDED, PLAIN, TRUNCATED], ids=["guided", "plain", "truncated"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_replayed_step_gives_exactly_the_eager_result(
    captures: Captures, kind: str, settings: RolloutSettings
) -> None:
    eager = rolled(whole_cache(tiny_policy(**KINDS[kind]), graph=False), settings)
    assert captures.count == 0
    replayed = rolled(whole_cache(tiny_policy(**KINDS[kind]), graph=True), settings)
    assert captures.count == 2, "one capture a level"
    assert_same(eager, replayed)


def test_captures_are_kept_over_training_steps_and_see_every_update(captures: Captures) -> None:
    policy = whole_cache(tiny_policy(merge_rollout=False), graph=True)
    seen = []
    for step in range(4):
        seen.append(rolled(policy, GUIDED, step=0))
        # What the weights are now, without any capture:
        assert_same(seen[-1], rolled(whole_cache(copy_with_adapter(policy), graph=False), GUIDED, step=0))
        optimizer = torch.optim.SGD([p for p in policy.parameters() if p.requires_grad], lr=0.3)
        for parameter in policy.parameters():
            if parameter.requires_grad:
                parameter.grad = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(step))
        optimizer.step()
        # The first image level makes the cache larger, after which the plan's step is captured on it once more.
        assert captures.count == (2 if step == 0 else 3)
    assert not torch.equal(seen[0].levels[IMAGE].ids, seen[1].levels[IMAGE].ids), "the updates shall matter"


def copy_with_adapter(policy: Any) -> Any:
    other = tiny_policy(merge_rollout=False)
    other.load_state_dict(policy.state_dict())
    return other


def test_other_shapes_or_settings_are_captured_anew_and_known_ones_are_not(captures: Captures) -> None:
    policy = whole_cache(tiny_policy(merge_rollout=False), graph=True)
    rolled(policy, GUIDED)  # the cache has its size now
    cold = replace(GUIDED, image=Sampling(0.5, 3.0))
    # (settings, rollouts a prompt, captures made by then)
    for settings, group, made in [
        (GUIDED, 4, 3),
        (GUIDED, 4, 3),
        (cold, 4, 4),
        (cold, 2, 6),
        (GUIDED, 4, 6),
        (replace(GUIDED, max_plan_tokens=9), 4, 7),
    ]:
        rolled(policy, settings, group=group)
        assert captures.count == made


def test_only_so_many_captures_are_kept(captures: Captures, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode_module, "KEPT_CAPTURES", 2)
    policy = whole_cache(tiny_policy(merge_rollout=False), graph=True)
    for _ in range(3):
        rolled(policy, GUIDED)
    assert captures.count == 3
    rolled(policy, GUIDED, group=2)  # both make room
    rolled(policy, GUIDED)
    assert captures.count == 7
    assert len(policy.decoder().captured) == 2


def test_a_grown_cache_is_captured_anew(captures: Captures) -> None:
    policy = whole_cache(tiny_policy(merge_rollout=False), graph=True)
    few = rolled(policy, GUIDED, group=2)
    rolled(policy, GUIDED, group=8)
    made = captures.count
    assert_same(rolled(policy, GUIDED, group=2), few)
    assert captures.count == made + 2, "what was captured on the old addresses is gone"


def test_longer_contexts_within_the_memory_are_captured_anew(captures: Captures) -> None:
    """The image level made the memory large; a plan that needs more places has other strides on the same addresses."""
    policy = whole_cache(tiny_policy(merge_rollout=False), graph=True)
    rolled(policy, GUIDED, group=16)
    address = policy.decoder()._memory._keys.data_ptr()
    keys = group_keys(0, "train", 0, [0], 4)
    short, long = ([text] * 4 for text in ("a red circle", "a red circle left of a blue square " * 12))

    def plans(policy: Any, prompts: list[str]) -> Any:
        return sample_plans(policy, policy.decoder(), prompts, keys, GUIDED)

    for prompts in (short, long, short):
        eager = whole_cache(tiny_policy(merge_rollout=False), graph=False)
        plans(eager, long)  # as many places
        seen, expected = plans(policy, prompts), plans(eager, prompts)
        assert torch.equal(seen.ids, expected.ids)
        torch.testing.assert_close(seen.rollout_logp, expected.rollout_logp, atol=1e-5, rtol=0)
    assert policy.decoder()._memory._keys.data_ptr() == address, "the memory was large enough"


def test_merged_weights_are_never_replayed_from_an_older_moment(captures: Captures) -> None:
    policy = whole_cache(tiny_policy(), graph=True)
    before = rolled(policy, GUIDED)
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if "lora_B" in name:
                parameter.mul_(-1.0)
    after = rolled(policy, GUIDED)
    assert captures.count == 4
    assert not torch.equal(before.levels[IMAGE].ids, after.levels[IMAGE].ids)


@pytest.mark.parametrize("void", ["released", "moved"])
def test_what_a_dropped_decoder_captured_is_gone_at_once(captures: Captures, void: str) -> None:
    """A captured step refers to its decoder, which keeps it: the cycle would hold a graph's memory on the GPU."""
    policy = whole_cache(tiny_policy(merge_rollout=False), graph=True)
    rolled(policy, GUIDED)
    steps = [weakref.ref(step) for step in policy.decoder().captured.values()]
    assert steps
    gc.disable()
    try:
        if void == "released":
            policy.release_cache()
        else:
            policy.janus.lm_head.weight.data = policy.janus.lm_head.weight.data.clone()
            policy.decoder()
        assert not any(step() for step in steps)
    finally:
        gc.enable()


def test_what_the_reference_captured_is_gone_with_it(captures: Captures) -> None:
    policy = whole_cache(tiny_policy(merge_rollout=False), graph=True)
    prompts, keys = list(PROMPTS), group_keys(0, "train", 0, range(3), 1)
    gc.disable()
    try:
        with policy.reference() as decoder:
            roll_out(policy, decoder, prompts, keys, GUIDED)
            steps = [weakref.ref(step) for step in decoder.captured.values()]
            assert steps
        assert not any(step() for step in steps)
    finally:
        gc.enable()


def test_without_reuse_each_rollout_captures(captures: Captures) -> None:
    policy = tiny_policy(merge_rollout=False)
    policy.engine = EngineSettings(graph=True, reuse_cache=False)
    first = rolled(policy, GUIDED)
    assert_same(rolled(policy, GUIDED), first)
    assert captures.count == 4


def test_a_policy_of_its_own_kind_is_never_captured(captures: Captures) -> None:
    rolled(ToyPolicy(), GUIDED)
    assert captures.count == 0


@pytest.mark.parametrize(
    ("choice", "device", "captured"),
    [(None, "cpu", False), (None, "cuda", True), (False, "cuda", False), (True, "cuda", True)],
)
def test_auto_captures_on_a_gpu(choice: bool | None, device: str, captured: bool) -> None:
    found = graph.capture_for(EngineSettings(graph=choice), torch.device(device))
    assert (found is graph.cuda_graph) == captured
    assert (found is None) != captured


def test_a_graph_asked_for_on_a_cpu_is_refused() -> None:
    policy = tiny_policy(merge_rollout=False)
    policy.engine = EngineSettings(graph=True)
    with pytest.raises(ValueError, match=r"rollout\.graph=true: CUDA graphs need a GPU, the device is cpu"):
        rolled(policy, GUIDED)


def nothing() -> None:
    """No state to put back."""


@pytest.mark.parametrize(
    "offence",
    [
        lambda x: x.sum().item(),
        lambda x: bool(x.any()),
        lambda x: x[x > 0],
        lambda x: x.nonzero(),
        lambda x: torch.unique(x),
        lambda x: x.masked_select(x > 0),
        lambda x: torch.tensor([1.0]) + x,
        lambda x: x.index_put_((x > 0,), torch.zeros(())),
    ],
)
def test_the_recorder_refuses_what_needs_the_host(offence: Callable[[torch.Tensor], object]) -> None:
    x = torch.randn(4)
    with pytest.raises(HostNeeded):
        record(lambda: (offence(x), None)[1], nothing)


def test_the_recorder_replays_host_numbers_as_they_were() -> None:
    """As a CUDA graph would; a step that counted on the host would show."""
    x, seen, count = torch.zeros(1), torch.zeros(3), [0]

    def step() -> None:
        count[0] += 1
        x.add_(count[0])
        seen.index_copy_(0, torch.zeros(1, dtype=torch.int64), x * 2)

    replay = record(step, nothing)
    x.zero_()
    for _ in range(3):
        replay()
    assert x.item() == 6.0, "three times the 2 of the recording"
    assert seen[0] == 12.0
