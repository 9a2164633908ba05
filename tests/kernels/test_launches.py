"""What Triton checks at a launch, and its interpreter does not, holds for every kernel; no GPU needed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.conftest import ROOT

SCRIPT = Path(__file__).with_name("launches.py")


def test_every_kernel_can_be_launched_and_is_compiled_once() -> None:
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, str(SCRIPT)],
        env={**environment, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout)
    statistics = {"forward_kernel", "backward_kernel", "one_pass_kernel", "sampling_kernel"}
    step = {"rotate_kernel", "attention_kernel", "combine_kernel", "norm_kernel", "silu_kernel"}
    assert found["launched"].keys() == statistics | step
    assert found["compiled_again"] == []
