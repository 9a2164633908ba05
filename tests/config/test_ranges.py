"""Every number of every command has a range: found by walking the schema, so that a new one is covered by itself."""

from __future__ import annotations

import inspect
import re
from dataclasses import replace
from math import inf, nan
from typing import Any, get_type_hints

import pytest
from torchmetrics import Metric

from src.cli.compose import compose
from src.cli.errors import group_options
from src.config.checks import check_values
from src.config.commands import ROOT_SCHEMAS, SamplingConfig, settings_of
from src.config.errors import UserError
from src.config.schema import RewardsConfig
from src.config.setting import PATH, Range, Setting, settings
from src.trained import check_sampling

NUMBERS = sorted(
    (root, key) for root in ROOT_SCHEMAS for key, setting in settings_of(root).items() if setting.number is not None
)
EXTREMES = [nan, inf, -inf, 1e300, -1e300, 1e-300, 2**65, -(2**65)]
EXPERTS = sorted(set(group_options("rewards")) - {"shapes", "t2i_r1"})


def test_there_are_numbers_to_look_at() -> None:
    assert {("config", "run.seed"), ("demo", "port"), ("benchmark", "images"), ("generate", "sampling.plan_top_p")} <= {
        *NUMBERS
    }
    assert len({key for _, key in NUMBERS}) > 90


@pytest.mark.parametrize("root", sorted(ROOT_SCHEMAS))
def test_every_number_declares_a_range_with_both_ends(root: str) -> None:
    for setting in settings_of(root).values():
        if setting.number is None:
            assert setting.range is None, setting.key
            continue
        bounds = setting.range
        assert bounds is not None, f"{setting.key}: make it with number_field"
        assert bounds.ge is not None or bounds.gt is not None, setting.key
        assert bounds.le is not None or bounds.lt is not None, setting.key


def around(bounds: Range, kind: type) -> list[float]:
    """The ends of a range and a step to both sides of each."""
    ends = [end for end in (bounds.ge, bounds.gt, bounds.le, bounds.lt) if end is not None]
    return [end + step for end in ends for step in (0, *((1, -1) if kind is int else (1e-7, -1e-7, 1, -1)))]


def meant(setting: Setting, value: float) -> bool:
    """Whether the range holds for `value`, worked out from its four ends alone."""
    bounds = setting.range
    assert bounds is not None
    if setting.number is int and not isinstance(value, int):
        return False
    if not -(10.0**200) < value < 10.0**200:  # NaN fails it
        return False
    low = value >= bounds.ge if bounds.ge is not None else value > (-inf if bounds.gt is None else bounds.gt)
    high = value <= bounds.le if bounds.le is not None else value < (inf if bounds.lt is None else bounds.lt)
    return low and high


@pytest.mark.parametrize("root", sorted(ROOT_SCHEMAS))
def test_numbers_out_of_range_are_refused_in_words_and_others_taken(root: str) -> None:
    """Over the values of every number: outside of its range the message has key, value and range."""
    refused = 0
    for setting in settings_of(root).values():
        if setting.number is None or setting.range is None:
            continue
        for value in [*EXTREMES, *around(setting.range, setting.number)]:
            node: object = value
            for name in reversed(setting.key.split(".")):
                node = {name: node}
            if meant(setting, value):
                check_values(node, [replace(setting, rule=None)])
                continue
            refused += 1
            with pytest.raises(UserError) as caught:
                check_values(node, [replace(setting, rule=None)])
            assert str(caught.value) == f"{setting.key}={value}: expected {setting.told()}"
            assert re.search(r"\d", setting.told())
    assert refused or not any(setting.number for setting in settings_of(root).values())


RULED = [(root, s) for root in sorted(ROOT_SCHEMAS) for s in settings_of(root).values() if s.rule is not None]


@pytest.mark.parametrize(("root", "setting"), RULED, ids=lambda item: item if isinstance(item, str) else item.key)
def test_a_value_against_its_rule_is_refused_in_words(root: str, setting: Setting) -> None:
    """What the rule says stands with the key and the value; and a run's default keeps its own rule (`validate`)."""
    assert setting.rule is not None
    value: Any = [] if "at least" in setting.rule.expected else "../no/such thing"
    node: object = value
    for name in reversed(setting.key.split(".")):
        node = {name: node}
    with pytest.raises(UserError) as caught:
        check_values(node, [replace(setting, range=None)])
    assert str(caught.value) == f"{setting.key}={value}: expected {setting.rule.expected}"


def test_every_choice_is_ruled() -> None:
    """A choice that lost its rule would be taken as any text."""
    ruled = {setting.key for _, setting in RULED}
    assert ruled >= {"algorithm.kl", "algorithm.kl_in", "algorithm.logp", "algorithm.penalties_on", "optim.schedule"}
    assert ruled >= {"optim.betas", "optim.activation_checkpointing", "run.name", "rollout.graph", "trainer.devices"}
    assert ruled >= {"trainer.precision", "model.dtype", "model.lora.targets", "data.on_error", "rewards.combine"}
    assert ruled >= {"rewards.on_error", "kernels", "kinds", "mode", "images", "scaling", "dtype", "layout", "host"}
    assert ruled >= {"devices", "accelerator", "log_level"}


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("run.seed=36893488147419103232", "run.seed=36893488147419103232: expected an integer >= 0 and <= 9223372036"),
        ("rollout.guidance_scale=1e300", "rollout.guidance_scale=1e+300: expected a number >= 1 and <= 100"),
        ("rollout.plan.temperature=1e-300", "rollout.plan.temperature=1e-300: expected a number >= 0.01 and <= 100"),
        ("+rewards.weights.shapes=1e300", "rewards.weights.shapes=1e+300: expected a number >= 0 and <= 1e+06"),
        ("optim.lr=nan", "optim.lr=nan: expected a number >= 1e-12 and <= 10"),
        ("watchdog.seconds=inf", "watchdog.seconds=inf: expected a number >= 0.001 and <= 1e+06"),
        ("evaluation.every=nan", "evaluation.every=nan: expected an integer >= 1 and <= 1000000000"),
        ("run.seed=1e300", "run.seed=1e+300: expected an integer >= 0"),
        ("run.seed=???", "run.seed=???: expected an integer"),
        ("optim.betas=[0.9,1.0]", "optim.betas=[0.9, 1.0]: expected numbers >= 0 and < 1"),
        ("trainer.devices=36893488147419103232", "trainer.devices=36893488147419103232: expected auto, how many"),
        ("trainer.devices=2.5", "trainer.devices=2.5: expected auto, how many"),
        ("trainer.devices=[]", "trainer.devices=[]: expected auto, how many"),
        ("trainer.devices=[99999]", "trainer.devices=[99999]: expected auto, how many"),
        ("trainer.devices='99999'", "trainer.devices=99999: expected auto, how many"),
    ],
)
def test_what_is_said(words: str, expected: str) -> None:
    with pytest.raises(UserError) as caught:
        compose([words])
    assert str(caught.value).startswith(expected)


@pytest.mark.parametrize("devices", ["auto", "-1", "2", "[0,1]", "'0,1'"])
def test_devices_that_can_be_meant(devices: str) -> None:
    compose([f"trainer.devices={devices}"])


@pytest.mark.parametrize("name", EXPERTS)
def test_the_numbers_and_paths_of_experts_are_declared(name: str) -> None:
    """Experts have no schema: what their constructors take stands with `rewards.experts`."""
    from hydra.utils import get_class

    config = compose([f"rewards={name}"])
    declared = next(setting.parts for setting in settings(RewardsConfig) if setting.key == "experts")
    for part in config.rewards.experts.values():
        expert = get_class(part._target_)
        assert issubclass(expert, Metric)
        hints = get_type_hints(expert.__init__)
        for parameter in inspect.signature(expert.__init__).parameters:
            hint = str(hints.get(parameter, ""))
            if "pathlib" in hint:
                assert declared[parameter].typed == PATH, parameter
            elif hints.get(parameter) in (int, float):
                assert declared[parameter].number is hints[parameter], parameter
                assert declared[parameter].range is not None, parameter


@pytest.mark.parametrize(
    ("option", "words", "expected"),
    [
        ("hps", "rewards.experts.hps.batch_size=some", "rewards.experts.hps.batch_size=some: expected an integer >= 1"),
        ("hps", "rewards.experts.hps.batch_size=true", "rewards.experts.hps.batch_size=True: expected an integer >= 1"),
        ("orm", "rewards.experts.orm.temperature=1e-300", "rewards.experts.orm.temperature=1e-300: expected a number"),
        ("detector", "rewards.experts.detector.box_threshold=nan", "expected a number > 0 and < 1"),
    ],
)
def test_an_experts_numbers_are_checked_before_it_is_made(option: str, words: str, expected: str) -> None:
    with pytest.raises(UserError) as caught:
        compose([f"rewards={option}", words])
    assert expected in str(caught.value)


def test_an_expert_of_somebody_else_means_what_it_likes_by_a_name() -> None:
    check_values(
        {"rewards": {"experts": {"mine": {"_target_": "my_rewards.Mine", "temperature": 0}}}},
        settings_of("config").values(),
    )


@pytest.mark.parametrize(("key", "value"), [("plan_temperature", 1e-300), ("guidance_scale", inf), ("image_top_k", 0)])
def test_what_a_run_sampled_with_is_checked_too(key: str, value: float) -> None:
    sampling = {item.key: getattr(SamplingConfig(), item.key) for item in settings(SamplingConfig)}
    check_sampling(sampling)
    with pytest.raises(UserError, match=rf"sampling\.{key}="):
        check_sampling(sampling | {key: value})
