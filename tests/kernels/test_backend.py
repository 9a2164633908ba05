"""The choice of backend, and what importing the package must not do."""

from __future__ import annotations

import ast
from dataclasses import fields
from pathlib import Path

import pytest
import torch

import kernels
from kernels import BackendUnavailable, backend, decoding, operations, resolve


def test_torch_runs_anywhere_and_auto_needs_no_triton_on_a_cpu() -> None:
    assert resolve("torch", "cpu") == resolve("torch", "cuda") == "torch"
    assert resolve("auto", "cpu") == "torch"
    assert operations("auto", "cpu").name == "torch"
    assert operations("torch", "cpu").token_statistics is kernels.token_statistics
    assert operations("torch", "cpu").head_statistics is kernels.head_statistics
    assert operations("torch", "cpu").one_pass_head is kernels.one_pass_head
    decode = operations("torch", "cpu").decoding
    for field in fields(decode):
        assert getattr(decode, field.name) is getattr(decoding, field.name)
    assert operations("torch", "cpu").sample_tokens is kernels.sample_tokens


def test_a_forced_backend_that_cannot_run_raises_and_names_the_fix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(BackendUnavailable, match=r"kernels=triton: .*cpu.*kernels=auto or kernels=torch"):
        resolve("triton", "cpu")
    with pytest.raises(BackendUnavailable, match="NVIDIA GPUs, the device is mps"):
        resolve("triton", "mps")


def test_without_the_package_a_forced_triton_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "find_spec", lambda name: None)
    with pytest.raises(BackendUnavailable, match="triton is not installed"):
        resolve("triton", "cuda")
    assert resolve("auto", "cuda") == "torch"


def test_the_interpreter_serves_tests_on_a_cpu_and_never_a_choice_of_auto(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert resolve("triton", "cpu") == "triton"
    assert resolve("auto", "cpu") == resolve("auto", "cuda") == "torch"
    with pytest.raises(BackendUnavailable, match="TRITON_INTERPRET is set"):
        resolve("triton", "cuda")


@pytest.mark.parametrize(("capability", "chosen"), [((7, 5), "torch"), ((8, 0), "triton"), ((9, 0), "triton")])
def test_auto_takes_triton_on_a_gpu_that_can(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], chosen: str
) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a card")
    monkeypatch.setattr(backend, "which", lambda name: name)
    assert resolve("auto", "cuda") == chosen
    if chosen == "torch":
        with pytest.raises(BackendUnavailable, match=r"a card has compute capability 7.5, the kernels need 8.0"):
            resolve("triton", "cuda")


def test_without_a_compiler_triton_is_no_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(backend, "which", lambda name: None)
    assert resolve("auto", "cuda") == "torch"
    with pytest.raises(BackendUnavailable, match=r"kernels=triton: .*C compiler: install gcc or clang, or set CC"):
        resolve("triton", "cuda")
    monkeypatch.setenv("CC", "cc")
    assert resolve("auto", "cuda") == resolve("triton", "cuda") == "triton"


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
            if node in tree.body:
                assert "triton" not in modules, path.name
