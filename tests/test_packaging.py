"""What an installation would contain, built for real from a copy of the checkout, and what pyproject promises."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest

import src
from tests.conftest import ROOT

ASKED_FOR = {"lightning", "torch", "torchmetrics", "transformers", "peft", "timm", "omegaconf", "mlflow", "triton"}
PACKAGES = ("src", "kernels")


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def shipped_files() -> set[str]:
    """Every file of the two packages, as a path below the checkout."""
    files = (path for top in PACKAGES for path in (ROOT / top).rglob("*") if path.is_file())
    return {path.relative_to(ROOT).as_posix() for path in files if "__pycache__" not in path.parts}


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkout's packages and their neighbours that setuptools' auto-discovery would trip over."""
    root = tmp_path_factory.mktemp("checkout")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, root)
    for top in PACKAGES:
        shutil.copytree(ROOT / top, root / top, ignore=shutil.ignore_patterns("__pycache__"))
    for other in ("configs", "experiments", "tests", "docs"):
        (root / other).mkdir()
        (root / other / "__init__.py").touch()
    return root


def built(root: Path, kind: str) -> zipfile.ZipFile:
    """The wheel (`kind` "wheel" or "editable") that pip would build, without a network."""
    code = f"from setuptools import build_meta; print(build_meta.build_{kind}('out-{kind}'))"
    (root / f"out-{kind}").mkdir()
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return zipfile.ZipFile(root / f"out-{kind}" / done.stdout.split()[-1])


def test_a_build_holds_the_two_packages_whole_and_nothing_else(copy: Path) -> None:
    names = {name for name in built(copy, "wheel").namelist() if ".dist-info/" not in name}
    assert names == shipped_files()


def test_the_editable_install_maps_the_two_packages_only(copy: Path) -> None:
    with built(copy, "editable") as wheel:
        finder = next(name for name in wheel.namelist() if name.endswith("_finder.py"))
        source = wheel.read(finder).decode()
    mapping = ast.literal_eval(re.search(r"^MAPPING[^=]*= (\{.*\})$", source, re.MULTILINE).group(1))  # type: ignore[union-attr]
    assert mapping == {name: str(copy / name) for name in PACKAGES}


def test_every_folder_of_modules_is_a_package() -> None:
    """A folder without __init__.py would be left out of an installation."""
    folders = {path.parent for top in PACKAGES for path in (ROOT / top).rglob("*.py")}
    assert [str(folder) for folder in folders if not (folder / "__init__.py").is_file()] == []


def test_no_wheel_can_be_published_by_accident(project: dict[str, Any]) -> None:
    assert "Private :: Do Not Upload" in project["project"]["classifiers"]


def test_versions_agree(project: dict[str, Any]) -> None:
    assert project["project"]["version"] == src.__version__


def test_what_was_asked_for_is_required(project: dict[str, Any]) -> None:
    required = {re.split(r"[<>=; ]", entry)[0] for entry in project["project"]["dependencies"]}
    assert required >= ASKED_FOR


def test_triton_is_required_on_linux_only(project: dict[str, Any]) -> None:
    (triton,) = (entry for entry in project["project"]["dependencies"] if entry.startswith("triton"))
    assert triton.partition(";")[2].strip() == "sys_platform == 'linux'"


def test_extras_are_the_documented_ones(project: dict[str, Any]) -> None:
    assert set(project["project"]["optional-dependencies"]) >= {"dev", "demo", "serve", "bench"}


def test_the_embedded_checkpoint_stays_small() -> None:
    """At most 8 MB in all, so that it can live in the repository."""
    folder = ROOT / "src" / "shapes" / "checkpoint"
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) <= 8e6


@pytest.mark.skipif(os.name != "posix", reason="file modes")
def test_the_integration_script_can_be_run() -> None:
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
