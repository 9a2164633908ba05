"""What every test shares. `src` comes first: its import hooks must stand before lightning or transformers."""

from __future__ import annotations

import os

# Tiny models are fastest on one thread each, and no test may need a network.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("MPLBACKEND", "Agg")
# Read when triton is first imported, which torch or transformers may do: its kernels run interpreted in tests.
os.environ.setdefault("TRITON_INTERPRET", "1")

import src  # noqa: F401, I001 (before the packages it mends)

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
import subprocess
import sys

import hypothesis
import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent

hypothesis.settings.register_profile("project", deadline=None, derandomize=True, print_blob=True)
hypothesis.settings.load_profile("project")

RunPython = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _nothing_left_of_launchers() -> Iterator[None]:
    """Lightning's launchers write ranks and ports into this process's environment, and may leave a process group."""
    before, had_group = dict(os.environ), torch.distributed.is_initialized()  # a module may have one of its own
    yield
    if torch.distributed.is_initialized() and not had_group:
        torch.distributed.destroy_process_group()
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture
def run_python(tmp_path: Path) -> RunPython:
    """Runs Python code in a fresh process, away from the checkout: ``run_python(code, path=[directories])``."""

    def run(code: str, path: Sequence[Path | str] = (ROOT,), timeout: float = 120) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, path))}
        return subprocess.run(
            [sys.executable, "-c", code],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    return run
