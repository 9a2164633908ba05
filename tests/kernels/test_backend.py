"""The choice of backend, and what importing the package must not do."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import kernels
from kernels import BackendUnavailable, operations, resolve


def test_torch_runs_anywhere_and_auto_needs_no_triton_on_a_cpu() -> None:
    assert resolve("torch", "cpu") == resolve("torch", "cuda") == "torch"
    assert resolve("auto", "cpu") == "torch"
    assert operations("auto", "cpu").name == "torch"
    assert operations("torch", "cpu").token_statistics is kernels.token_statistics
    assert operations("torch", "cpu").head_statistics is kernels.head_statistics


def test_a_forced_backend_that_cannot_run_raises_and_names_the_fix() -> None:
    with pytest.raises(BackendUnavailable, match=r"kernels=triton: .*cpu.*kernels=auto or kernels=torch"):
        resolve("triton", "cpu")


def test_an_unknown_backend_is_named() -> None:
    with pytest.raises(ValueError, match="kernels=cuda: expected one of auto, triton, torch"):
        operations("cuda", "cpu")


def test_the_version_reads_as_too_old_for_those_who_want_the_other_package_of_this_name() -> None:
    assert kernels.__version__ == "0.0.0"


def test_importing_the_package_imports_torch_at_most() -> None:
    """Triton only inside functions, transformers never: the package shares its name with one it probes for."""
    for path in Path(kernels.__file__).parent.glob("*.py"):
        tree = ast.parse(path.read_text())
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                modules = {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                modules = {(node.module or "").split(".")[0]}
            else:
                continue
            assert not modules & {"transformers", "lightning", "src"}, path.name
            if node in tree.body and path.name in ("__init__.py", "backend.py", "reference.py", "kl.py"):
                assert "triton" not in modules, path.name
