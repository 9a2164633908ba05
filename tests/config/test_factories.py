"""Everything that a config can call, slot by slot; the tables here are written by hand."""

from __future__ import annotations

import ast
import inspect
import pkgutil
import sys
from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest

from src import algorithms, rewards
from src.config import factories
from src.config.allowed_targets import check_config, check_part, factory
from src.config.errors import UserError
from src.config.factories import MOVED, SLOTS
from tests.conftest import ROOT

INVENTORY: dict[str, set[str]] = {
    "model": {"src.policies.load.load_janus"},
    "data": {"src.data.module.PromptDataModule"},
    "expert": {
        "src.rewards.experts.aesthetic.Aesthetic",
        "src.rewards.experts.clip_score.ClipScore",
        "src.rewards.experts.detector.Detector",
        "src.rewards.experts.git_vqa.GitVqa",
        "src.rewards.experts.hps.HPS",
        "src.rewards.experts.orm.ORM",
        "src.rewards.experts.shapes_judge.ShapesJudge",
        "src.rewards.experts.vlm_judge.VLMJudge",
    },
    "logger": {
        "src.loggers.mlflow_logger.MLflowLogger",
        "lightning.pytorch.loggers.CSVLogger",
        "lightning.pytorch.loggers.CometLogger",
        "lightning.pytorch.loggers.LitLogger",
        "lightning.pytorch.loggers.MLFlowLogger",
        "lightning.pytorch.loggers.TensorBoardLogger",
        "lightning.pytorch.loggers.WandbLogger",
    },
    # Of a sweep's `hydra` section, which no run folder has.
    "launcher": {
        "hydra._internal.core_plugins.basic_launcher.BasicLauncher",
        "hydra_plugins.hydra_joblib_launcher.joblib_launcher.JoblibLauncher",
        "hydra_plugins.hydra_submitit_launcher.submitit_launcher.LocalLauncher",
        "hydra_plugins.hydra_submitit_launcher.submitit_launcher.SlurmLauncher",
    },
    "sweeper": {
        "hydra._internal.core_plugins.basic_sweeper.BasicSweeper",
        "hydra_plugins.hydra_ax_sweeper.ax_sweeper.AxSweeper",
        "hydra_plugins.hydra_nevergrad_sweeper.nevergrad_sweeper.NevergradSweeper",
        "hydra_plugins.hydra_optuna_sweeper.optuna_sweeper.OptunaSweeper",
    },
    "callback": set(),
}
# (slot, setting): what may be called inside of a part's settings.
NESTED = {("expert", "sizes"): "src.rewards.vision.clip_layout.ClipSizes"}
# `algorithm.name` imports src.algorithms.variants.<name>.
VARIANTS = {"cispo", "dapo", "dr_grpo", "grpo", "gspo", "reinforce_pp", "reinforce_pp_baseline", "rloo"}


def test_the_registry_is_the_inventory() -> None:
    assert {name: set(slot.factories) for name, slot in SLOTS.items()} == INVENTORY
    assert {(name, key): only for name, slot in SLOTS.items() for key, only in slot.nested.items()} == NESTED
    marked = [getattr(found, "__module__", "") for slot in factories._MARKED.values() for found in slot]
    assert [home for home in marked if home.startswith(("src", "kernels"))] == [], "nothing of ours marks itself"


def test_variants_are_called_by_name() -> None:
    assert set(algorithms.names()) == VARIANTS


def bound(body: list[ast.stmt], prefix: str) -> Iterator[str]:
    """The dotted path of every name that a module or class binds, private and imported ones too, at any depth."""
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield f"{prefix}.{node.name}"
        elif isinstance(node, ast.ClassDef):
            yield f"{prefix}.{node.name}"
            yield from bound(node.body, f"{prefix}.{node.name}")
        elif isinstance(node, ast.Import | ast.ImportFrom):
            for alias in node.names:
                yield f"{prefix}.{alias.asname or alias.name}"
        else:
            for inner in ast.walk(node):
                if isinstance(inner, ast.Name) and isinstance(inner.ctx, ast.Store):
                    yield f"{prefix}.{inner.id}"
                elif isinstance(inner, ast.Import | ast.ImportFrom):
                    yield from (f"{prefix}.{alias.asname or alias.name}" for alias in inner.names)


def everything_of(*packages: str) -> set[str]:
    """Every name of every module of packages of this checkout, by their source; and the modules themselves."""
    found: set[str] = set()
    for file in (path for package in packages for path in (ROOT / package).rglob("*.py")):
        parts = file.relative_to(ROOT).with_suffix("").parts
        module = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found |= {module, *bound(ast.parse(file.read_text(encoding="utf-8")).body, module)}
    return found


def everything_installed(package: str) -> set[str]:
    """Every name of every module of an installed package, as it is after import, with the members of its classes."""
    found: set[str] = set()
    for info in pkgutil.walk_packages(import_module(package).__path__, f"{package}."):
        try:
            module = import_module(info.name)
        except ImportError:  # needs what is not installed
            continue
        for name, value in vars(module).items():
            found.add(f"{info.name}.{name}")
            if inspect.isclass(value):
                found |= {f"{info.name}.{name}.{member}" for member in dir(value)}
    return found


def allowed(targets: set[str]) -> set[tuple[str, str]]:
    """(slot, target) of every one that the checks let pass, tried in every slot."""
    passed = set()
    for slot in SLOTS:
        for target in targets:
            try:
                check_part({"_target_": target}, slot, (), "key")
            except UserError:
                continue
            passed.add((slot, target))
    return passed


def test_nothing_else_of_this_project_can_be_called() -> None:
    targets = everything_of("src", "kernels", "experiments", "tests")
    assert len(targets) > 5000
    assert {"src.policies.export._copy_rest", "src.train.train", "src.rewards.base.RewardExpert.score"} <= targets
    ours = {(slot, target) for slot, names in INVENTORY.items() for target in names if target.startswith("src.")}
    assert allowed(targets) == ours
    assert {target for _, target in ours} <= targets


@pytest.mark.parametrize("package", ["lightning.pytorch.loggers", "hydra._internal"])
def test_nothing_else_of_an_installed_package_can_be_called(package: str) -> None:
    targets = everything_installed(package) | {f"{package}.{name}" for name in dir(import_module(package))}
    assert len(targets) > 200
    listed = {(slot, target) for slot, names in INVENTORY.items() for target in names}
    assert allowed(targets) == {pair for pair in listed if pair[1] in targets}
    assert any(pair[1] in targets for pair in listed)


def test_nothing_of_python_itself_can_be_called() -> None:
    names = {"system", "Popen", "exec", "open", "run", "load", "Path", "copy", "rmtree"}
    targets = {f"{module}.{name}" for module in sys.stdlib_module_names for name in names}
    assert allowed(targets) == set()


@pytest.mark.parametrize(("slot", "target"), sorted((slot, name) for slot in INVENTORY for name in INVENTORY[slot]))
def test_every_factory_is_there(slot: str, target: str) -> None:
    if target.startswith("hydra_plugins.") and find_spec("hydra_plugins") is None:
        pytest.skip("no plugin of Hydra is installed")
    if find_spec(".".join(target.split(".")[:2])) is None:
        pytest.skip(f"{target} is not installed")
    made, settings = factory({"_target_": target, "a": [1]}, slot, (), "key")
    assert made.__name__ == target.rpartition(".")[2]
    assert settings == {"a": [1]}
    assert allowed({f"{target}.{member}" for member in dir(made)}) == set(), "nothing is reached through a class"
    for other in INVENTORY:
        if other != slot:
            with pytest.raises(UserError, match=r"^key\._target_="):
                factory({"_target_": target}, other, (), "key")


def test_a_nested_factory_is_called_where_its_slot_says_so() -> None:
    from src.rewards.vision.clip_layout import ClipSizes
    from tests.rewards.tiny_experts.hps import SIZES

    values = {name: getattr(SIZES, name) for name in ClipSizes.__dataclass_fields__}
    sizes = {"_target_": "src.rewards.vision.clip_layout.ClipSizes", **values}
    node = {"_target_": "src.rewards.experts.hps.HPS", "sizes": sizes}
    check_config({"rewards": {"experts": {"x": node}}})
    assert factory(node, "expert", (), "key")[1] == {"sizes": SIZES}
    for wrong in (
        {**node, "sizes": {"_target_": "src.rewards.experts.hps.HPS"}},
        {**node, "sizes": {**sizes, "embedding": sizes}},
        {**node, "sizes": [sizes]},
        {**node, "path": sizes},
        {**node, "sizes": {**sizes, "_partial_": True}},
    ):
        with pytest.raises(UserError, match=r"^key\.(sizes|path)"):
            factory(wrong, "expert", (), "key")
    with pytest.raises(UserError, match=r"^model\.sizes\._target_"):
        check_config({"model": {"_target_": "src.policies.load.load_janus", "sizes": sizes}})


def test_a_factory_that_moved_is_found_by_its_path_of_before(monkeypatch: pytest.MonkeyPatch) -> None:
    from src.cli.compose import compose
    from src.rewards.experts.shapes_judge import ShapesJudge

    monkeypatch.setitem(factories.MOVED, "src.rewards.old.Judge", "src.rewards.experts.shapes_judge.ShapesJudge")
    monkeypatch.setitem(factories.MOVED, "src.old.load", "src.policies.load.load_janus")
    assert factory({"_target_": "src.rewards.old.Judge"}, "expert", (), "key") == (ShapesJudge, {})
    # The schema's keys are checked under the old path, too.
    compose(["model._target_=src.old.load"])
    with pytest.raises(UserError, match=r"^model\.pth: no such key"):
        compose(["model._target_=src.old.load", "+model.pth=x"])


def test_every_yaml_of_the_checkout_names_what_its_slot_allows() -> None:
    from omegaconf import OmegaConf

    from src.config.schema import CONFIGS

    seen = 0
    for group, slot in (("model", "model"), ("data", "data"), ("logger", "logger"), ("rewards", "expert")):
        for file in (CONFIGS / group).glob("*.yaml"):
            node = OmegaConf.to_container(OmegaConf.load(file), resolve=False)
            assert isinstance(node, dict)
            for part in node.get("experts", {}).values() if group == "rewards" else [node]:
                if part.get("_target_") is not None:
                    check_part(part, slot, (), str(Path(group, file.stem)))
                    seen += 1
    assert seen >= 10


def test_security_says_what_a_config_can_call() -> None:
    """The table in SECURITY.md names each factory, by its room and its name."""
    table = (ROOT / "SECURITY.md").read_text(encoding="utf-8").partition("### What a config can call")[2]
    table = table.partition("\n\nA plugin's")[0]
    rows = {line.split("|")[1].strip(): line.split("|")[2] for line in table.splitlines() if line.startswith("| ")}
    for place, slot in (
        ("`model`", "model"),
        ("`data`", "data"),
        ("`rewards.experts.NAME`", "expert"),
        ("`logger`", "logger"),
    ):
        named = set(rows[place].replace("`", " ").replace(",", " ").replace(";", " ").split())
        prefix = {"expert": "src.rewards.experts.", "logger": "lightning.pytorch.loggers."}.get(slot, "")
        assert {name.removeprefix(prefix) for name in INVENTORY[slot]} <= named
        assert len([word for word in named if word[-1] not in ":."]) == len(INVENTORY[slot])


def test_what_moved_stands_where_the_table_says() -> None:
    """Each old path leads to a factory, or to the one nested target there is, and no old path is a place of today."""
    places = {name for names in INVENTORY.values() for name in names} | set(rewards.NESTED.values())
    assert set(MOVED.values()) <= places
    assert not MOVED.keys() & places
    assert len(MOVED) == len(rewards.FACTORIES) + len(rewards.NESTED)
