"""Imports run one way (docs/ARCHITECTURE.md): no room reaches back, and none reaches round its protocol."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT

# What each room of src/ may import of this project besides itself. A dotted name allows that module and
# everything below it; `src.policies.base` therefore means: the protocol, not an implementation.
REWARDS = ("src.rewards.base", "src.rewards.ensemble")
CONFIG, RUNS = "src.config", "src.runs"
# The settings, each declared once: plain frozen objects, which the code takes as they are.
SETTINGS = "src.config.schema"
ROOMS: dict[str, tuple[str, ...]] = {
    "values": (),
    "hub": (),
    "images": (),
    "intervals": (),
    "text": (),
    # Of each room only the list of what a config may call there.
    "config": ("src.data", "src.loggers", "src.policies", "src.rewards"),
    "cli": (CONFIG, RUNS, "src.values", "src.data", "src.loggers.mlflow_logger", "src.training.out_of_memory"),
    "runs": (CONFIG,),
    "algorithms": ("src.values", SETTINGS, "kernels"),
    "policies": ("src.values", SETTINGS, "src.hub", "src.text", "kernels"),
    "rewards": ("src.values", "src.runs.phases", "src.hub", "src.text"),
    "data": ("src.values", "src.hub"),
    "shapes": ("src.values",),
    "rollout": ("src.values", SETTINGS, "src.runs.phases", "src.policies.base", "kernels"),
    "loggers": (CONFIG, RUNS),
    "geneval": (),
    "training": (
        *("src.values", CONFIG, RUNS, "src.algorithms", "src.rollout", "src.policies.base", "src.policies.dtensors"),
        *(*REWARDS, "kernels"),
    ),
}
# Single modules that may do more than their room.
EXTRA: dict[str, tuple[str, ...]] = {
    "src": ("src.cli.compat",),
    # The lists of factories are the rooms' `__init__`; the rooms themselves are out of reach for the schema.
    "src.rewards.experts.shapes_judge": ("src.shapes",),
    # A served prompt record is written as prompt files are, and read by the same function.
    "src.rewards.wire": ("src.data.records",),
    "src.rewards.entries": ("src.config.errors",),
    # The warm start of the drawn world's checkpoint is taught on the very texts the policy will read.
    "src.shapes.sampler": ("src.policies.contexts",),
    "src.shapes.warmstart": ("src.policies.contexts",),
    # What a user gave is checked with the policy's own eyes, and answered as wrong input.
    "src.policies.loaded": ("src.config.errors",),
    "src.policies.prompt_checks": (CONFIG, "src.rewards.ensemble"),
    # The weights of a checkpoint are compared by their shapes before any is loaded.
    "src.runs.resume": ("src.policies.weight_files",),
    # The run put together, and the memory it will take: they see the implementations.
    "src.training.session": ("src.build", "src.cli.closed_output", "src.loggers", "src.policies"),
    "src.training.preflight": ("src.build", "src.policies"),
    "src.training.memory": ("src.policies",),
}
# Rooms of commands, what they share, and a recipe: they see everything but each other's commands.
COMMANDS = (
    *("train", "generate", "evaluate", "compare", "export", "serve_rewards", "demo", "benchmark"),
    *("benchmark_images", "score_geneval", "upload_metrics"),
)
# What the modules beside a command may import, where that is little.
PARTS: dict[str, tuple[str, ...]] = {
    # Layouts and prompts of public benchmarks: no model, and of GenEval's scorer only what its prompts may ask for.
    "benchmark_images": (CONFIG, "src.runs.folder_lock", "src.data", "src.images", "src.geneval.requirements"),
    "compare": (CONFIG, RUNS, "src.intervals", "src.cli.errors", "src.loggers"),
    "evaluate": ("src.values", "src.intervals", "src.rollout", "src.policies.base", *REWARDS, "src.training"),
}
# It loads what is compared.
WHOLE = ("src.evaluate.contestants",)
ENTRY_POINTS = ("src.build", "src.trained", "src.shapes.pretrain", *(f"src.{name}" for name in COMMANDS))
# The kernels stand alone; the benchmark may also use what it compares with.
KERNELS_THIRD_PARTY = {"torch", "triton"}
KERNELS_BENCHMARK = "kernels.benchmark"

Violation = tuple[str, int, str]


def below(name: str, roots: tuple[str, ...]) -> bool:
    return any(name == root or name.startswith(root + ".") for root in roots)


def module_name(file: Path, root: Path) -> str:
    parts = file.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(file: Path, root: Path) -> Iterator[tuple[int, str]]:
    """(line, absolute module) of every import in a file, those inside functions and TYPE_CHECKING too.

    ``from a import b`` is module ``a.b`` where that is a module of the tree, else ``a``.
    """
    package = module_name(file, root).split(".")
    if file.name != "__init__.py":
        package = package[:-1]
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"), str(file))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*start, *([node.module] if node.module else [])])
            for alias in node.names:
                path = root.joinpath(*base.split("."), alias.name)
                is_module = path.with_suffix(".py").is_file() or path.is_dir()
                yield node.lineno, f"{base}.{alias.name}" if is_module else base


def top_imports(file: Path, root: Path) -> Iterator[tuple[int, str]]:
    """`imports`, of those alone that run when the module is imported."""
    tree = ast.parse(file.read_text(encoding="utf-8"), str(file))
    lines = {line for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom) for line in (node.lineno,)}
    return ((line, name) for line, name in imports(file, root) if line in lines)


def allowed(importer: str, imported: str) -> bool:
    """Whether module `importer` of src or kernels may import module `imported`."""
    top, name = importer.partition(".")[0], imported.partition(".")[0]
    if name in ("experiments", "tests", "configs", "docs"):
        return False
    if top == "kernels":
        free = name in sys.stdlib_module_names or name in KERNELS_THIRD_PARTY | {"kernels"}
        return free or (below(importer, (KERNELS_BENCHMARK,)) and name != "src")
    room = importer.split(".")[1] if "." in importer else ""
    if room == "values" and name not in sys.stdlib_module_names:
        return name == "torch"
    if name not in ("src", "kernels"):
        return True
    if imported == "src.train" or (imported.endswith((".command", ".__main__")) and imported != "src.cli.command"):
        return importer == f"src.{room}.__main__"  # nothing imports a command but what runs it
    beside = room in PARTS and importer not in (f"src.{room}.command", f"src.{room}.__main__", *WHOLE)
    if below(importer, ENTRY_POINTS) and not beside:
        return True
    if beside:
        return below(imported, (*PARTS[room], f"src.{room}"))
    if importer == "src.config.factories":
        return (below(imported, ROOMS["config"]) and imported.count(".") == 1) or below(imported, ("src.config",))
    if room == "config":
        return below(imported, ("src.config",))
    return below(imported, (*ROOMS.get(room, ()), *EXTRA.get(importer, ()), *([f"src.{room}"] if room else [])))


def violations(root: Path) -> list[Violation]:
    """(file, line, imported module) of every import under root's src/ and kernels/ that runs the wrong way."""
    return [
        (str(file.relative_to(root)), line, name)
        for top in ("src", "kernels")
        for file in sorted((root / top).rglob("*.py"))
        for line, name in sorted(set(imports(file, root)))
        if not allowed(module_name(file, root), name)
    ]


def test_imports_run_one_way() -> None:
    assert violations(ROOT) == []


def test_every_room_is_listed() -> None:
    """A new folder or module of src/ would otherwise pass as one that may import nothing, or everything."""
    rooms = {path.stem for path in (ROOT / "src").iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()}
    assert rooms == {"__init__", "build", "trained", *ROOMS, *COMMANDS}


def test_the_root_of_src_is_small() -> None:
    assert len(list((ROOT / "src").glob("*.py"))) <= 8


def test_no_modules_import_each_other_in_a_circle() -> None:
    """Imports at the top of a module; one inside a function waits until it is called."""
    graph = {
        module_name(file, ROOT): {name for _, name in top_imports(file, ROOT)} - {module_name(file, ROOT)}
        for top in ("src", "kernels")
        for file in (ROOT / top).rglob("*.py")
    }
    while free := [name for name, needs in graph.items() if not needs & graph.keys()]:
        for name in free:
            del graph[name]
    assert graph == {}


@pytest.mark.parametrize(
    ("file", "code", "imported"),
    [
        ("src/algorithms/losses.py", "from src.training import loop", "src.training.loop"),
        ("src/algorithms/losses.py", "import src.policies.base", "src.policies.base"),
        ("src/rollout/decode.py", "from src.policies.janus import JanusPolicy", "src.policies.janus"),
        ("src/rollout/decode.py", "from src.rewards.base import RewardExpert", "src.rewards.base"),
        ("src/rollout/decode.py", "def f():\n    from ..training.loop import x", "src.training.loop"),
        (
            "src/data/jsonl.py",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import src.shapes",
            "src.shapes",
        ),
        ("src/rewards/base.py", "from src.shapes.judge import judge", "src.shapes.judge"),
        ("src/policies/janus.py", "from .. import rollout", "src.rollout"),
        ("src/benchmark_images/writer.py", "from src.rollout import decode", "src.rollout.decode"),
        ("src/benchmark_images/geneval.py", "import src.geneval.detector", "src.geneval.detector"),
        ("src/geneval/rules.py", "from src.data import jsonl", "src.data.jsonl"),
        (
            "src/training/loop.py",
            "from src.rewards.experts.shapes_judge import ShapesJudge",
            "src.rewards.experts.shapes_judge",
        ),
        ("src/training/loop.py", "from src import train", "src.train"),
        ("src/values.py", "from src.data import jsonl", "src.data.jsonl"),
        ("src/values.py", "import lightning", "lightning"),
        ("src/config/schema.py", "import src.rewards", "src.rewards"),
        ("src/config/factories.py", "from src.rewards.base import RewardExpert", "src.rewards.base"),
        ("src/runs/folder.py", "import src.training.loop", "src.training.loop"),
        ("src/trained.py", "from src import train", "src.train"),
        ("src/evaluate/command.py", "from src.generate.command import generate", "src.generate.command"),
        ("src/train.py", "from experiments import study", "experiments.study"),
        ("src/train.py", "import tests.conftest", "tests.conftest"),
        ("src/__init__.py", "from src.values import Sampling", "src.values"),
        ("kernels/reference.py", "import transformers.utils", "transformers.utils"),
        ("kernels/reference.py", "from src.values import Sampling", "src.values"),
        ("kernels/benchmark.py", "from src.values import Sampling", "src.values"),
    ],
)
def test_a_planted_violation_is_found(tmp_path: Path, file: str, code: str, imported: str) -> None:
    modules = [
        "generate/command",
        "rewards/base",
        "rollout/decode",
        "training/loop",
        "data/jsonl",
        "shapes/judge",
        "policies/janus",
        "train",
        "values",
    ]
    for name in [*(f"src/{module}.py" for module in modules), "experiments/study.py", "kernels/__init__.py", file]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert violations(tmp_path) == []
    (tmp_path / file).write_text(code + "\n")
    assert violations(tmp_path) == [(file, code.count("\n") + 1, imported)]


@pytest.mark.parametrize(
    ("file", "code"),
    [
        ("src/algorithms/losses.py", "import kernels\nfrom src.values import LossOutput\nfrom . import advantages"),
        ("src/rollout/decode.py", "from src.policies.base import Policy\nfrom kernels.reference import x"),
        ("src/training/loop.py", "import lightning\nfrom src.rollout.decode import x\nfrom src.rewards.base import y"),
        ("src/rewards/experts/shapes_judge.py", "from src.shapes.judge import judge"),
        ("src/train.py", "from src.training.loop import x\nimport src.policies.janus"),
        ("src/shapes/pretrain.py", "from src.training.loop import x"),
        ("src/__init__.py", "from src.cli import compat"),
        ("kernels/fused.py", "import math\nimport triton.language as tl\nfrom kernels import reference"),
        ("kernels/benchmark.py", "import liger_kernel"),
    ],
)
def test_what_is_allowed_passes(tmp_path: Path, file: str, code: str) -> None:
    (tmp_path / file).parent.mkdir(parents=True)
    (tmp_path / file).write_text(code + "\n")
    (tmp_path / "src/cli").mkdir(parents=True, exist_ok=True)
    (tmp_path / "src/cli/compat.py").touch()
    assert violations(tmp_path) == []
