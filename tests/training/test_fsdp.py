"""Weights cut over two processes (FSDP2, gloo) train as one process does: rollouts, gradients, weights, checkpoints."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from src.values import IMAGE, PLAN
from tests.training import ddp_worker
from tests.training.lightning_pieces import write_prompts
from tests.training.pieces import ADVANTAGES, assert_same_gradients
from tests.training.test_ddp import recorded

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_two_cut_processes_do_what_one_does(tmp_path: Path, kind: str) -> None:
    """Full: the KL is exact, so that the reference's head is kept, and its reference moves along after two steps."""
    write_prompts(tmp_path / "prompts")
    ddp_worker.main(tmp_path, 1, kind, "auto")
    alone = torch.load(tmp_path / f"{kind}-1-0.pt")
    first, second = (found for _, found in sorted(recorded(tmp_path, kind, 2, "fsdp").items()))
    for step in range(3):
        for level in (PLAN, IMAGE):
            assert first[0][step][level] + second[0][step][level] == alone[0][step][level]
        for found in (first, second):
            assert_same_gradients(found[1][step], alone[1][step], ADVANTAGES)
    assert first[2].keys() == second[2].keys() == alone[2].keys()
    for name, value in first[2].items():
        assert torch.equal(value, second[2][name]), "the ranks stay together"
        assert float((value - alone[2][name]).abs().mean()) < 1e-7
