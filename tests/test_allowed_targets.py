"""What a config's `_target_` may lead to, and that nothing else is imported or called."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from src import build, cli
from src.allowed_targets import PARTS, check_hydra, check_plugins, check_targets, find_target, targets
from src.cli import compose
from src.config import CONFIGS, UserError
from src.config_entries import ROOT_SCHEMAS
from src.rewards.shapes_judge import ShapesJudge

BOOBY_TRAP = """
from pathlib import Path
Path({mark!r}).write_text("imported")
from os import system
from my_partner.deep import Expert
import os

class Own:
    from_elsewhere = os.system

    @classmethod
    def made(cls):
        return cls()

    def method(self):
        ...

instance = Own()
"""


@pytest.fixture
def trap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A package ``my_trap`` that writes a file when it is imported, and one it takes a class from."""
    mark = tmp_path / "imported"
    for name, text in (("my_trap", BOOBY_TRAP.format(mark=str(mark))), ("my_partner", "")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(text)
    (tmp_path / "my_partner" / "deep.py").write_text("class Expert: ...\n")
    (tmp_path / "my_trapdoor.py").write_text(f"from pathlib import Path\nPath({str(mark)!r}).write_text('door')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield mark
    for name in [name for name in sys.modules if name.startswith(("my_trap", "my_partner"))]:
        del sys.modules[name]


@pytest.mark.parametrize(
    ("target", "kind"),
    [
        ("src.rewards.shapes_judge.ShapesJudge", "ShapesJudge"),
        ("src.policies.load.load_janus", "load_janus"),
        ("src.data.module.PromptDataModule", "PromptDataModule"),
        ("src.loggers.mlflow_logger.MLflowLogger", "MLflowLogger"),
        ("lightning.pytorch.loggers.CSVLogger", "CSVLogger"),
    ],
)
def test_the_parts_of_this_project_are_found(target: str, kind: str) -> None:
    assert find_target(target, (), "key").__name__ == kind


@pytest.mark.parametrize(
    "target",
    [
        *(
            "os.system",
            "builtins.exec",
            "subprocess.Popen",
            "srcs.data.X",
            "src",
            "src.train.train",
            "lightning.Trainer",
        ),
        *("src.training.run_folder.write_text", "src.data", "src.data.module", "src.data.module.torch.load"),
        *("src.loggers.writer_process.subprocess.Popen", "src.loggers.store.os.system", "src.data.jsonl.json.loads"),
        *("src.policies.load.load_janus.__globals__", "src.config.__builtins__", "src.data.lines.KINDS"),
        *("src.policies.load.Path", "src.policies.load.torch.load", "src.rewards.base.RewardExpert.__subclasses__"),
        *("", ".", "src..data", ".src.data.X", "src.data.module.", "src.data.X()", "src.data/../os", "src.data.\0x"),
        *(
            "src.rewards.base.Metric",
            "src.rewards.shapes_judge.ShapesJudge.load_state_dict",
            "src.data.splits.json.load",
        ),
    ],
)
def test_everything_else_is_refused(target: str) -> None:
    with pytest.raises((UserError, ImportError)) as caught:
        find_target(target, (), "model")
    if isinstance(caught.value, UserError):
        assert "model._target_" in str(caught.value)
    node = OmegaConf.create({"model": {"_target_": target}, "run": {"seed": 0}})
    with pytest.raises(UserError, match=r"^model"):
        build.build_policy(node)


@pytest.mark.parametrize("target", [3, True, ["os.system"], {"a": 1}, 1.5])
def test_a_target_that_is_no_text_is_refused(target: Any) -> None:
    with pytest.raises(UserError, match="dotted path"):
        check_targets({"a": {"_target_": target}})


@pytest.mark.parametrize(
    ("node", "place"),
    [
        ({"_target_": "os.system"}, "_target_"),
        ({"a": {"b": {"_target_": "os.system"}}}, "a.b._target_"),
        ({"a": [{"b": 1}, {"_target_": "os.system"}]}, "a[1]._target_"),
        ({"a": [[{"c": {"_target_": "os.system"}}]]}, "a[0][0].c._target_"),
        ({"_target_": PARTS[0] + ".module.X", "_args_": [{"_target_": "os.system"}]}, "_args_[0]._target_"),
    ],
)
def test_targets_are_found_wherever_they_stand(node: Any, place: str) -> None:
    with pytest.raises(UserError) as caught:
        check_targets(node)
    assert str(caught.value).startswith(f"{place}=os.system: ")
    assert "plugins=[os]" in str(caught.value)


json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=12,
)


def _planted(node: Any, path: list[int], target: Any) -> Any:
    """`node` with ``{"_target_": target}`` put at a place that `path` chooses."""
    inside = [*node] if isinstance(node, dict) else [*range(len(node))] if isinstance(node, list) else []
    if not path or not inside:
        return {"kept": node, "_target_": target}
    key = inside[path[0] % len(inside)]
    copy = node.copy()
    copy[key] = _planted(node[key], path[1:], target)
    return copy


@settings(max_examples=60, deadline=None)
@given(json, st.lists(st.integers(0, 9), max_size=5))
def test_a_planted_target_is_always_found(node: Any, path: list[int]) -> None:
    planted = _planted(node, path, "os.system")
    assert "os.system" in [value for _, value in targets(planted)]
    with pytest.raises(UserError):
        check_targets(planted)


def test_a_plugin_is_called_by_its_name_alone(trap: Path) -> None:
    for target in ("my_trap.Own", "my_trapdoor.anything", "my_partner.deep.Expert"):
        with pytest.raises(UserError, match=r"plugins=\[my_"):
            find_target(target, (), "key")
    with pytest.raises(UserError):
        find_target("my_trapdoor.anything", ["my_trap"], "key")
    assert not trap.exists()
    assert find_target("my_trap.Own", ["my_trap"], "key").__name__ == "Own"
    assert trap.read_text() == "imported"
    assert find_target("my_trap.Own.made", ["my_trap"], "key")() is not None
    assert find_target("my_trap.Own.method", ["my_trap"], "key").__name__ == "method"
    # What a plugin took from elsewhere is elsewhere's.
    for target in ("my_trap.system", "my_trap.os.system", "my_trap.Own.from_elsewhere", "my_trap.instance"):
        with pytest.raises(UserError):
            find_target(target, ["my_trap"], "key")
    with pytest.raises(UserError, match=r"plugins=\[my_partner\]"):
        find_target("my_trap.Expert", ["my_trap"], "key")
    assert find_target("my_trap.Expert", ["my_trap", "my_partner"], "key").__name__ == "Expert"


@pytest.mark.parametrize("plugins", [[""], ["."], ["a..b"], ["a b"], ["../x"], ["__builtins__"], ["a.*"]])
def test_a_plugin_that_names_no_package_is_refused(plugins: list[str]) -> None:
    with pytest.raises(UserError, match="plugins="):
        check_plugins(plugins)


def test_the_command_line_is_checked_before_anything_is_made(trap: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = "+rewards.experts.x._target_=my_trap.Own"
    for root in ROOT_SCHEMAS:
        if "rewards" not in ROOT_SCHEMAS[root].__dataclass_fields__:
            continue
        chosen = ["rewards=shapes"] if root == "evaluate" else []
        with pytest.raises(UserError) as caught:
            compose([*chosen, told], root)
        assert "rewards.experts.x._target_=my_trap.Own" in str(caught.value)
        assert "plugins=[my_trap]" in str(caught.value)
        assert compose([*chosen, told, "plugins=[my_trap]"], root).rewards.experts.x._target_ == "my_trap.Own"
    assert not trap.exists()
    from src.train import COMMAND

    assert cli.run(COMMAND, [told, "--cfg", "job"]) == 2
    assert "plugins=[my_trap]" in capsys.readouterr().err


def test_an_interpolated_target_is_what_it_becomes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WHICH", "os.system")
    with pytest.raises(UserError, match=r"os\.system"):
        compose(["+rewards.experts.x._target_=${oc.env:WHICH}"])
    with pytest.raises(UserError, match="run_name_that_is_not"):
        compose(["run.name=${run_name_that_is_not}"])


@pytest.mark.parametrize(
    "override",
    [
        "+hydra.callbacks.x._target_=os.system",
        "hydra.launcher._target_=os.system",
        "hydra.sweeper._target_=my_trap.Own",
        "+hydra.job_logging.handlers.x.class=os.system",
        "+hydra.hydra_logging.handlers.x.stream=ext://my_trapdoor.anything",
    ],
)
def test_a_sweep_calls_nothing_but_hydras_own(trap: Path, override: str, capsys: pytest.CaptureFixture[str]) -> None:
    from src.train import COMMAND

    assert cli.run(COMMAND, ["-m", "run.seed=0,1", "logger=csv", override]) == 2
    assert "hydra." in capsys.readouterr().err
    assert not trap.exists()


def test_hydras_own_launchers_are_allowed() -> None:
    check_hydra({"launcher": {"_target_": "hydra._internal.core_plugins.basic_launcher.BasicLauncher"}}, ())
    check_hydra({"launcher": {"_target_": "hydra_plugins.hydra_submitit_launcher.submitit_launcher.SlurmLauncher"}}, ())
    fine = {"class": "logging.StreamHandler", "stream": "ext://sys.stdout"}
    check_hydra({"job_logging": {"handlers": {"console": fine}}}, ())
    with pytest.raises(UserError, match=r"hydra\.job_logging\.handlers\.x\.\(\)=os\.system"):
        check_hydra({"job_logging": {"handlers": {"x": {"()": "os.system"}}}}, ())


def test_every_shipped_part_is_allowed() -> None:
    found = 0
    for file in CONFIGS.rglob("*.yaml"):
        for _, target in targets(OmegaConf.to_container(OmegaConf.load(file), resolve=False)):
            if target is not None:
                check_targets({"_target_": target})
                found += 1
    assert found >= 10


def test_a_run_folders_config_names_no_code_of_its_own(trap: Path, tmp_path: Path) -> None:
    """A run that somebody else made: its `plugins` do not count, those on the command line do."""
    from src.generate import choose_model

    run = tmp_path / "run"
    (run / "adapter").mkdir(parents=True)
    (run / "adapter" / "adapter_config.json").write_text("{}")
    (tmp_path / "base").mkdir()
    config = OmegaConf.to_container(compose([f"model.path={tmp_path / 'base'}"]), resolve=True)
    assert isinstance(config, dict)
    config |= {"plugins": ["my_trap"], "model": {**config["model"], "_target_": "my_trap.Own"}}
    OmegaConf.save(OmegaConf.create(config), run / "config.yaml")
    with pytest.raises(UserError, match=r"model\._target_=my_trap\.Own.*plugins=\[my_trap\]"):
        choose_model(compose([f"run={run}"], "generate"))
    assert not trap.exists()
    assert choose_model(compose([f"run={run}", "plugins=[my_trap]"], "generate"))["plugins"] == ["my_trap"]


def test_an_expert_of_the_project_is_made_as_ever() -> None:
    made = build.build_rewards(compose([]))
    assert isinstance(made.experts_here["shapes"], ShapesJudge)


def test_a_server_checks_its_experts_too() -> None:
    rewards = {"experts": {"x": {"_target_": "os.system", "command": "true"}}, "devices": {}}
    with pytest.raises(UserError, match=r"rewards\.experts\.x\._target_=os\.system"):
        build.served_experts(rewards, [], "cpu")
