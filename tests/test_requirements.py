"""What is imported is declared, what is declared is used, and the lowest versions that CI installs are pyproject's."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT
from tests.test_imports import below, module_name

OURS = {"src", "kernels", "experiments", "tests"}
# Modules whose distribution has another name; any other is called as its module, with - for _.
DISTRIBUTION = {"PIL": "pillow", "hydra": "hydra-core", "quack": "quack-kernels", "yaml": "pyyaml"}

# Whose imports an extra may serve. Everything else under src, kernels and experiments gets along without extras.
EXTRA_OF = {
    "src.data.hub_dataset": "datasets",
    "src.demo": "demo",
    "src.serve_rewards.connections": "serve",
    "src.serve_rewards.guard": "serve",
    "src.serve_rewards.server": "serve",
    "kernels.benchmark": "bench",
}
# Imported by kernels.benchmark alone, which compares with them where they are; each wants a torch or a card of
# its own choice, so that no extra could install all of them together. kernels/README.md has the command.
PEERS = {"cut-cross-entropy", "quack-kernels", "trl"}
# Declared, and imported by nothing of this project: what needs each.
NOT_IMPORTED = {
    "hydra-submitit-launcher": "Hydra finds it as a plugin: configs/hydra/launcher",
    "nvidia-ml-py": "MLflow's system metrics read the card through it",
    "wandb": "Lightning's WandbLogger",
    "mypy": "nox -s types",
    "pip-audit": "nox -s audit",
    "pytest-xdist": "nox -s tests: pytest -n",
    "ruff": "nox -s lint",
    "setuptools": "builds the package; tests/test_packaging.py runs it in a process of its own",
    "types-pyyaml": "mypy's view of yaml",
}
# Declared, and not in tests/lowest_versions.txt.
NOT_LOWERED = {
    "torch": "stays as installed: builds for the CPU are not to be had of each version",
    "triton": "torch requires exactly one version of it",
    "liger-kernel": "needs a card",
    "mypy": "reads the source only",
    "nox": "runs the sessions, from outside of their environments",
    "pip-audit": "no test of the suite calls it",
    "ruff": "reads the source only",
    "setuptools": "builds the package, in an environment of its own",
    "types-pyyaml": "reads the source only",
}

REQUIREMENT = re.compile(r"(?P<name>[A-Za-z0-9_.-]+)(?:\[(?P<extras>[^\]]*)\])?(?P<versions>[^;]*)")


def normalised(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


class Declared:
    """The requirements of pyproject.toml: distribution -> versions, for each group.

    ``groups`` is keyed by extra, and "" for what everybody gets. An extra that names others of this project has theirs.
    """

    def __init__(self, project: dict[str, Any]) -> None:
        self.own = normalised(project["name"])
        self.entries: dict[str, list[str]] = {"": project["dependencies"], **project["optional-dependencies"]}
        self.groups = {name: dict(self._requirements(name)) for name in self.entries}

    def _requirements(self, group: str) -> Iterator[tuple[str, str]]:
        for entry in self.entries[group]:
            found = REQUIREMENT.match(entry)
            assert found is not None, entry
            name = normalised(found["name"])
            if name != self.own:
                yield name, found["versions"].strip()
                continue
            for extra in found["extras"].split(","):
                yield from self._requirements(extra.strip())

    def all(self) -> dict[str, str]:
        return {name: versions for group in self.groups.values() for name, versions in group.items()}


@pytest.fixture(scope="module")
def declared() -> Declared:
    return Declared(tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"])


@cache
def modules(file: Path) -> frozenset[str]:
    """The top names of what a file imports of others, those inside functions and TYPE_CHECKING too."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"), str(file))):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module is not None:
            found.add(node.module.partition(".")[0])
    return frozenset(found - sys.stdlib_module_names - OURS)


def third_parties(file: Path) -> set[str]:
    """The distribution behind every import of a file."""
    return {normalised(DISTRIBUTION.get(module, module)) for module in modules(file)}


def imported(root: Path, *tops: str) -> dict[str, set[str]]:
    """module of the project -> distributions it imports."""
    files = sorted(file for top in tops for file in (root / top).rglob("*.py"))
    return {module_name(file, root): third_parties(file) for file in files}


def undeclared(root: Path, declared: Declared) -> list[tuple[str, str]]:
    """(module, distribution) of every import that an install of what the module's users are told leaves out."""
    found = []
    for module, distributions in imported(root, "src", "kernels", "experiments").items():
        extras = [extra for place, extra in EXTRA_OF.items() if below(module, (place,))]
        free = {name for group in ["", *extras] for name in declared.groups[group]}
        free |= PEERS if below(module, ("kernels.benchmark",)) else set()
        found += [(module, name) for name in sorted(distributions - free)]
    return found


def unused(root: Path, declared: Declared) -> set[str]:
    """Distributions that are declared and that nothing imports: no code, no test, not the noxfile."""
    used = {name for names in imported(root, "src", "kernels", "experiments", "tests").values() for name in names}
    used |= third_parties(root / "noxfile.py")
    return set(declared.all()) - used


def test_what_is_imported_is_declared(declared: Declared) -> None:
    assert undeclared(ROOT, declared) == []


def test_what_tests_import_comes_with_an_extra(declared: Declared) -> None:
    wanted = {name for names in imported(ROOT, "tests").values() for name in names}
    assert wanted - set(declared.all()) == {"torchvision"}, "which comes with timm"


def test_what_is_declared_is_imported(declared: Declared) -> None:
    """Both ways: an exception that is imported after all, or no longer declared, is an old one."""
    assert unused(ROOT, declared) == set(NOT_IMPORTED)


def test_dependencies_of_every_install_are_used_without_tests(declared: Declared) -> None:
    used = {name for names in imported(ROOT, "src", "kernels", "experiments").values() for name in names}
    assert set(declared.groups[""]) - used == set()


def test_peers_of_the_benchmark_are_still_its_peers(declared: Declared) -> None:
    used = {name for names in imported(ROOT, "kernels/benchmark").values() for name in names}
    assert used >= PEERS
    assert not PEERS & set(declared.all())


def test_every_place_of_an_extra_imports_from_it(declared: Declared) -> None:
    modules = imported(ROOT, "src", "kernels")
    for place, extra in EXTRA_OF.items():
        own = set(declared.groups[extra]) - set(declared.groups[""])
        assert any(names & own for module, names in modules.items() if below(module, (place,))), place


def test_modules_are_matched_with_their_distributions() -> None:
    """By what is installed: the tests above would otherwise compare names that belong to nothing."""
    installed = packages_distributions()
    for top in ("src", "kernels", "experiments", "tests"):
        for file in (ROOT / top).rglob("*.py"):
            for module in modules(file) & set(installed):
                assert normalised(DISTRIBUTION.get(module, module)) in map(normalised, installed[module]), module


@pytest.mark.parametrize(
    ("file", "code", "wanted"),
    [
        ("src/values.py", "import attrs", "attrs"),
        ("src/values.py", "def f():\n    from bs4.element import Tag", "bs4"),
        (
            "src/cli/command.py",
            "from starlette.responses import Response",
            "starlette",
        ),  # of an extra, outside of its rooms
        ("src/policies/janus.py", "import trl", "trl"),
        ("kernels/head.py", "import liger_kernel", "liger-kernel"),
        ("experiments/study.py", "import hypothesis", "hypothesis"),
    ],
)
def test_a_planted_import_is_found(tmp_path: Path, declared: Declared, file: str, code: str, wanted: str) -> None:
    (tmp_path / file).parent.mkdir(parents=True)
    (tmp_path / file).write_text(code + "\n")
    module = file.removesuffix(".py").replace("/", ".")
    assert undeclared(tmp_path, declared) == [(module, wanted)]


def test_an_unused_requirement_is_found(tmp_path: Path) -> None:
    project = {"name": "x", "dependencies": ["torch>=2", "attrs>=20"], "optional-dependencies": {"all": ["x[more]"]}}
    project["optional-dependencies"]["more"] = ["bs4"]  # type: ignore[index]
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "a.py").write_text("import torch\n")
    (tmp_path / "noxfile.py").write_text("import nox\n")
    assert unused(tmp_path, Declared(project)) == {"attrs", "bs4"}


def lowest_versions() -> dict[str, str]:
    """tests/lowest_versions.txt: distribution -> version."""
    lines = (ROOT / "tests" / "lowest_versions.txt").read_text(encoding="utf-8").splitlines()
    pins = [line.partition("==") for line in lines if line and not line.startswith("#")]
    return {normalised(name): version for name, _, version in pins}


def lower_bound(versions: str) -> str | None:
    """The version after >= of a requirement; None without."""
    found = re.search(r">=\s*([0-9][0-9A-Za-z.]*)", versions)
    return found and found[1]


def test_every_requirement_has_a_lower_bound(declared: Declared) -> None:
    """Torch requires one version of triton, whichever that is."""
    assert [name for name, versions in declared.all().items() if lower_bound(versions) is None] == ["triton"]


def test_the_lowest_versions_are_those_of_pyproject(declared: Declared) -> None:
    """`nox -s tests_lowest` installs the file; `>=1.8` there is `==1.8` here, letter for letter."""
    wanted = {name: lower_bound(versions) for name, versions in declared.all().items() if name not in NOT_LOWERED}
    assert lowest_versions() == wanted


def test_one_requirement_has_one_lower_bound(declared: Declared) -> None:
    """A distribution named in two groups (an extra and `dev`) has the same versions in both."""
    for name, versions in declared.all().items():
        assert {group[name] for group in declared.groups.values() if name in group} == {versions}, name
