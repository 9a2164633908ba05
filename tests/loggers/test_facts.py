"""Settings as short flat parameters."""

from __future__ import annotations

from src.build import plain
from src.cli.compose import compose
from src.loggers.facts import flat_parameters, run_parameters, shown


def test_a_section_is_dropped_where_no_other_has_the_same_rest() -> None:
    known = dict.fromkeys(["a.beta", "a.every", "b.every", "b.lora.r", "top"], object)
    config = {"a": {"beta": 0.02, "every": 5}, "b": {"every": 7, "lora": {"r": 16}}, "top": "x", "logger": {"key": 1}}
    assert flat_parameters(config, known) == {
        "beta": "0.02", "a.every": "5", "b.every": "7", "lora.r": "16", "top": "x",
    }  # fmt: skip


def test_a_key_outside_of_the_schema_stays_whole_and_cannot_take_a_short_name() -> None:
    known = dict.fromkeys(["a.beta"], object)
    config = {"a": {"beta": 1, "new": 2}, "rewards": {"experts": {"x": {"beta": 3, "_target_": "m.X"}}}}
    assert flat_parameters(config, known) == {
        "beta": "1", "a.new": "2", "rewards.experts.x.beta": "3", "rewards.experts.x._target_": "m.X",
    }  # fmt: skip


def test_values_are_written_as_in_yaml_and_cut_at_500_characters() -> None:
    assert [shown(value) for value in (None, True, 0.5, [0.9, 0.95], "text", "ü")] == [
        "null", "true", "0.5", "[0.9, 0.95]", "text", "ü",
    ]  # fmt: skip
    assert len(shown("x" * 2000)) == 500
    assert shown("x" * 500) == "x" * 500


def test_the_shipped_config_has_short_names() -> None:
    asked = ("algorithm.beta=0.02", "optim.lr=2e-3", "trainer.max_steps=180", "evaluation.every=20", "run.seed=3")
    parameters = run_parameters(plain(compose(["experiment=bicot_lora", "checkpoint.every=10", *asked])))
    wanted = {
        "beta": "0.02", "lr": "0.002", "group_size": "8", "guidance_scale": "1.5", "max_steps": "180", "lora.r": "16",
        "run.seed": "3", "evaluation.seed": "1234", "evaluation.every": "20", "checkpoint.every": "10",
        "betas": "[0.9, 0.95]", "kernels": "auto", "plan.temperature": "1.0", "adapter": "null",
    }  # fmt: skip
    assert {name: parameters.get(name) for name in wanted} == wanted
    assert not [name for name in parameters if name.startswith(("logger", "resume", "tracking_uri"))]
