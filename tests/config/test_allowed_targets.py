"""What a config's `_target_` may lead to, and that nothing else is imported or called."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from src import build
from src.cli import command as cli
from src.cli.compose import compose
from src.config.allowed_targets import check_config, check_hydra, check_part, check_plugins, factory
from src.config.commands import ROOT_SCHEMAS
from src.config.errors import UserError
from src.config.factories import SLOTS, makes
from src.rewards.experts.shapes_judge import ShapesJudge

BOOBY_TRAP = """
from pathlib import Path
Path({mark!r}).write_text("imported")
from os import system
from my_partner.deep import Expert
import os
from src.config.factories import makes
from src.rewards.base import RewardExpert

class Own(RewardExpert):
    from_elsewhere = os.system

    @classmethod
    def made(cls):
        return cls()

    def score(self, pixels, records):
        ...

class Helper: ...

class _Private(RewardExpert): ...

def helper(path): ...

@makes("expert")
def marked(path=None): ...

@makes("model")
def load(): ...

instance = Helper()
alias = Own.made
"""


@pytest.fixture
def trap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A package ``my_trap`` that writes a file when it is imported, and one it takes a class from."""
    mark = tmp_path / "imported"
    for name, text in (("my_trap", BOOBY_TRAP.format(mark=str(mark))), ("my_partner", "")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(text)
    deep = "from src.rewards.base import RewardExpert\nclass Expert(RewardExpert): ...\n"
    (tmp_path / "my_partner" / "deep.py").write_text(deep)
    (tmp_path / "my_trapdoor.py").write_text(f"from pathlib import Path\nPath({str(mark)!r}).write_text('door')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield mark
    for name in [name for name in sys.modules if name.startswith(("my_trap", "my_partner"))]:
        del sys.modules[name]


@pytest.mark.parametrize(
    "target",
    [
        *("os.system", "builtins.exec", "subprocess.Popen", "srcs.data.X", "src", "src.train.train"),
        *("lightning.Trainer", "src.runs.folder.write_text", "src.data", "src.data.module", "torch.load"),
        *("src.data.module.torch.load", "src.loggers.writer_process.subprocess.Popen", "src.loggers.store.os.system"),
        *("src.policies.load.load_janus.__globals__", "src.config.schema.__builtins__", "src.data.lines.KINDS"),
        *("src.policies.load.Path", "src.rewards.base.RewardExpert", "src.rewards.base.RewardExpert.__subclasses__"),
        *("", ".", "src..data", ".src.data.X", "src.data.module.", "src.data.X()", "src.data/../os", "src.data.\0x"),
        *("src.rewards.experts.shapes_judge.ShapesJudge.load_state_dict", "src.data.splits.json.load"),
        *("src.policies.export._copy_rest", "src.policies.export.write_merged", "src.policies.janus.JanusPolicy"),
        *("src.loggers.mlflow_logger.start_parent", "lightning.pytorch.loggers.csv_logs.ExperimentWriter"),
        *("src.data.module.PromptDataModule", " src.policies.load.load_janus", "src.policies.load.load_janus\n"),
        *(3, True, ["os.system"], {"a": 1}, 1.5, None),
    ],
)
def test_everything_but_a_slots_factories_is_refused(target: Any) -> None:
    with pytest.raises(UserError, match=r"^model\._target_"):
        factory({"_target_": target}, "model", (), "model")
    node = OmegaConf.create({"model": {"_target_": target}, "run": {"seed": 0}})
    with pytest.raises(UserError, match=r"^model\._target_"):
        build.build_policy(node)


@pytest.mark.parametrize("node", [None, 3, "os.system", [], ["os.system"], {}, {"path": "x"}])
def test_a_part_without_a_target_is_told_as_such(node: Any) -> None:
    with pytest.raises(UserError, match=r"^model.*src\.policies\.load\.load_janus"):
        check_part(node, "model", (), "model")


JANUS, EVIL = "src.policies.load.load_janus", {"_target_": "os.system"}


@pytest.mark.parametrize(
    ("node", "place"),
    [
        (EVIL, "_target_"),
        ({"a": {"b": EVIL}}, "a.b._target_"),
        ({"a": [{"b": 1}, EVIL]}, "a[1]._target_"),
        ({"a": [[{"c": EVIL}]]}, "a[0][0].c._target_"),
        ({"model": {"_target_": JANUS, "lora": EVIL}}, "model.lora._target_"),
        # A factory of the very slot is not built inside of another either.
        ({"model": {"_target_": JANUS, "lora": {"_target_": JANUS}}}, "model.lora._target_"),
        ({"model": {"_target_": JANUS, "_args_": []}}, "model._args_"),
        ({"model": {"_target_": JANUS, "_partial_": True}}, "model._partial_"),
        ({"model": {"_target_": JANUS, "_recursive_": False}}, "model._recursive_"),
        ({"model": {"_target_": JANUS, "lora": {"_convert_": "all"}}}, "model.lora._convert_"),
        ({"logger": {"_target_": None, "name": EVIL}}, "logger.name._target_"),
        ({"rewards": {"experts": {"a.b": {"_target_": "os.system"}}}}, "rewards.experts.a.b._target_"),
        ({"rewards": {"weights": EVIL}}, "rewards.weights._target_"),
        ({"model": "x", "model.lora": EVIL}, "model.lora._target_"),
        # Slots are not exchanged.
        ({"data": {"_target_": JANUS}}, "data._target_"),
        ({"rewards": {"experts": {"x": {"_target_": JANUS}}}}, "rewards.experts.x._target_"),
        ({"rewards": {"experts": [{"_target_": JANUS}]}}, "rewards.experts[0]._target_"),
    ],
)
def test_targets_are_found_wherever_they_stand(node: Any, place: str) -> None:
    with pytest.raises(UserError) as caught:
        check_config(node)
    assert str(caught.value).startswith(f"{place}=")
    assert "plugins=[os]" not in str(caught.value)


def test_a_refusal_advises_plugins_only_for_a_package_of_ones_own(trap: Path) -> None:
    def advice(target: str) -> str:
        with pytest.raises(UserError) as caught:
            check_part({"_target_": target}, "expert", (), "rewards.experts.x")
        text = str(caught.value)
        assert text.startswith(f"rewards.experts.x._target_={target}: ")
        for name in SLOTS["expert"].factories:
            assert name in text
        return text

    assert "add plugins=[my_trap]" in advice("my_trap.Own")
    # Python's own, installed ones, this project's, what is not there: nothing that could be copied into a command.
    for target in (
        *("subprocess.Popen", "os.system", "builtins.exec", "posix.system", "_posixsubprocess.fork_exec"),
        *("torch.load", "numpy.load", "yaml.unsafe_load", "hydra.utils.instantiate", "mlflow.pyfunc.load_model"),
        *("src.policies.export.write_merged", "kernels.reference.x", "no_such_package.X", "pytest.main", "my trap.X"),
        *("subprocess", "my_trap", "my_trap._Private"),
    ):
        assert not re.search(r"plugins=\[\w", advice(target)), target
    assert not trap.exists()


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
    with pytest.raises(UserError, match=r"_target_=os\.system"):
        check_config({"x": planted})
    with pytest.raises(UserError, match=r"_target_=os\.system"):
        check_part({"_target_": JANUS, "lora": planted}, "model", (), "model")


def test_of_a_plugin_only_its_own_factories_are_called(trap: Path) -> None:
    def found(target: str, *plugins: str, slot: str = "expert") -> Any:
        return factory({"_target_": target}, slot, plugins, "key")[0]

    for target in ("my_trap.Own", "my_trapdoor.anything", "my_partner.deep.Expert"):
        with pytest.raises(UserError, match=r"plugins=\[my_"):
            found(target)
    with pytest.raises(UserError):
        found("my_trapdoor.anything", "my_trap")
    assert not trap.exists()
    assert found("my_trap.Own", "my_trap").__name__ == "Own"
    assert trap.read_text() == "imported"
    assert found("my_trap.marked", "my_trap").__name__ == "marked"
    assert found("my_trap.load", "my_trap", slot="model").__name__ == "load"
    # Not of the slot's kind, private, reached through a class, or no class or function at all.
    for target in (
        *("my_trap.Helper", "my_trap.helper", "my_trap.load", "my_trap._Private", "my_trap.instance", "my_trap.alias"),
        *("my_trap.Own.made", "my_trap.Own.score", "my_trap.Own.from_elsewhere", "my_trap.no_such", "my_trap"),
        *("my_trap.system", "my_trap.os.system", "my_trap.RewardExpert", "my_trap.makes", "my_trap.Path"),
    ):
        with pytest.raises(UserError, match=r"^key\._target_="):
            found(target, "my_trap")
    for target in ("my_trap.Own", "my_trap.marked", "my_trap.Helper"):
        with pytest.raises(UserError, match=r"^key\._target_="):
            found(target, "my_trap", slot="model")
    # What a plugin took from elsewhere is elsewhere's.
    with pytest.raises(UserError, match=r"defined in my_partner\.deep"):
        found("my_trap.Expert", "my_trap")
    assert found("my_trap.Expert", "my_trap", "my_partner").__name__ == "Expert"


def test_a_policy_of_a_plugin_has_a_policys_methods() -> None:
    assert factory({"_target_": "tests.policies.toy.ToyPolicy"}, "model", ["tests"], "model")[0].__name__ == "ToyPolicy"
    with pytest.raises(UserError, match=r"not a policy.*methods of src\.policies\.base\.Policy"):
        factory({"_target_": "tests.policies.toy.ToyNet"}, "model", ["tests"], "model")
    with pytest.raises(UserError, match=r"not a policy"):
        factory({"_target_": "torch.nn.Linear"}, "model", ["torch"], "model")


def test_a_slot_that_does_not_exist_cannot_be_marked() -> None:
    with pytest.raises(ValueError, match=r"no such slot.*expert"):
        makes("experts")


@pytest.mark.parametrize("plugins", [[""], ["."], ["a..b"], ["a b"], ["../x"], ["__builtins__"], ["a.*"], ["_a"]])
def test_a_plugin_that_names_no_package_is_refused(plugins: list[str]) -> None:
    with pytest.raises(UserError, match="plugins="):
        check_plugins(plugins)


@pytest.mark.parametrize("plugin", ["subprocess", "os", "os.path", "builtins", "src", "src.training", "kernels"])
def test_what_is_no_plugin_cannot_be_named_as_one(plugin: str) -> None:
    with pytest.raises(UserError, match=rf"^plugins=\[{plugin}\]: belongs to"):
        compose([f"plugins=[{plugin}]"])


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
        "+hydra.job_logging.handlers.x={class: logging.handlers.SocketHandler, host: localhost, port: 1}",
        "+hydra.job_logging.handlers.x=${model}",
        "hydra.launcher._target_=hydra._internal.utils.run_and_report",
        "+hydra.launcher.x={_target_: hydra._internal.core_plugins.basic_launcher.BasicLauncher}",
        "+hydra.launcher.x=${oc.create:${run.name}}",
        "+hydra.launcher._partial_=true",
        "+hydra.help.x={_target_: os.system}",
    ],
)
def test_a_sweep_calls_nothing_but_hydras_own(trap: Path, override: str, capsys: pytest.CaptureFixture[str]) -> None:
    from src.train import COMMAND

    assert cli.run(COMMAND, ["-m", "run.seed=0,1", "logger=csv", override]) == 2
    assert "hydra." in capsys.readouterr().err
    assert not trap.exists()


BASIC = {"_target_": "hydra._internal.core_plugins.basic_launcher.BasicLauncher"}


def test_hydras_own_launchers_are_allowed() -> None:
    check_hydra({"launcher": BASIC}, ())
    check_hydra({"launcher": {"_target_": "hydra_plugins.hydra_submitit_launcher.submitit_launcher.SlurmLauncher"}}, ())
    fine = {"class": "logging.StreamHandler", "stream": "ext://sys.stdout"}
    check_hydra({"job_logging": {"handlers": {"console": fine}}}, ())
    with pytest.raises(UserError, match=r"hydra\.job_logging\.handlers\.x\.\(\)=os\.system"):
        check_hydra({"job_logging": {"handlers": {"x": {"()": "os.system"}}}}, ())
    # Python's logging takes any name below its own for a function to call; and a section may be put in from elsewhere.
    with pytest.raises(UserError, match=r"hydra\.job_logging\.handlers\.x\.\(\)=logging\.os\.system"):
        check_hydra({"job_logging": {"handlers": {"x": {"()": "logging.os.system", "command": "true"}}}}, ())
    for section in ("${model}", {"handlers": "${model}"}, {"handlers": {"x": {"stream": "${run.name}"}}}):
        with pytest.raises(UserError, match=r"hydra\.job_logging"):
            check_hydra({"job_logging": section}, ())
    for launcher in ("${model}", {"_target_": "${run.name}"}, {**BASIC, "x": "${oc.decode:'{_target_: os.system}'}"}):
        with pytest.raises(UserError, match=r"hydra\.launcher"):
            check_hydra({"launcher": launcher}, ())
    with pytest.raises(UserError, match=r"hydra\.callbacks"):
        check_hydra({"callbacks": "${model}"}, ())
    # Of a plugin only what Hydra takes for a callback.
    check_hydra({"callbacks": {"x": {"_target_": "hydra.experimental.callbacks.LogJobReturnCallback"}}}, ["hydra"])
    with pytest.raises(UserError, match=r"hydra\.callbacks\.x\._target_=hydra\.utils\.instantiate: not a callback"):
        check_hydra({"callbacks": {"x": {"_target_": "hydra.utils.instantiate"}}}, ["hydra"])
    check_hydra({"launcher": {**BASIC, "x": "${hydra.sweep.dir}/%j-${now:%H}", "y": "${hydra:job.name}"}}, ())


def test_a_run_folders_config_names_no_code_of_its_own(trap: Path, tmp_path: Path) -> None:
    """A run that somebody else made: its `plugins` do not count, those on the command line do."""
    from src.trained import choose_model

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
