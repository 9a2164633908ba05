"""The kernels compile for an H100 / H200 at the block sizes they run with, and spill nothing; no GPU needed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from kernels.triton.attention import WARPS_A_MULTIPROCESSOR
from tests.conftest import ROOT

SCRIPT = Path(__file__).with_name("sm90.py")
SM_REGISTERS = 65_536


def compiled(which: str, timeout: float) -> dict[str, dict[str, int]]:
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, str(SCRIPT), which],
        env={**environment, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


def assert_nothing_spills(cases: dict[str, dict[str, int]]) -> None:
    bad = {name: case for name, case in cases.items() if case["spill_stores"] or case["spill_loads"] or case["stack"]}
    assert not bad


def test_the_heaviest_of_each_kernel_spills_nothing_and_reads_16_bytes_at_a_time() -> None:
    cases = compiled("fast", timeout=240)
    steps = {"attention", "combine", "rotate", "norm", "silu"}
    assert {name.split()[0] for name in cases} == {"forward", "backward", "one", "sampling"} | steps
    assert_nothing_spills(cases)
    assert all(case["vector_loads"] for case in cases.values())
    # The plain case is bound by memory: four blocks of 256 threads have to fit a multiprocessor.
    plain = next(case for name, case in cases.items() if name.startswith("forward bf16 kl=k3"))
    assert plain["registers"] * 256 * 4 <= SM_REGISTERS
    # So is attention: 32 warps on a multiprocessor, of which `attention_launch` counts its programs.
    attention = next(case for name, case in cases.items() if name.startswith("attention"))
    assert attention["registers"] * 32 * WARPS_A_MULTIPROCESSOR <= SM_REGISTERS


@pytest.mark.slow
def test_no_combination_spills() -> None:
    cases = compiled("all", timeout=900)
    assert len(cases) > 100
    assert_nothing_spills(cases)
