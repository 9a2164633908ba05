"""Two cards (NCCL) do what one does: DDP and FSDP2, adapters and all weights. Skipped where there are not two."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from src.values import IMAGE, PLAN
from tests.training.pieces import ADVANTAGES, assert_same_gradients
from tests.training.test_ddp import recorded

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices"),
]


@pytest.mark.parametrize(("kind", "strategy"), [("janus", "ddp"), ("lora", "ddp"), ("lora", "fsdp"), ("full", "fsdp")])
def test_two_cards_do_what_one_does(tmp_path: Path, kind: str, strategy: str) -> None:
    assert_two_as_one(tmp_path, kind, strategy, "cuda")


def assert_two_as_one(out: Path, kind: str, strategy: str, accelerator: str) -> None:
    """The first step's rollouts and gradients."""
    alone = recorded(out, kind, 1, "auto", accelerator)[1, 0]
    first, second = (found for _, found in sorted(recorded(out, kind, 2, strategy, accelerator).items()))
    for level in (PLAN, IMAGE):
        assert first[0][0][level] + second[0][0][level] == alone[0][0][level]
    for found in (first, second):
        assert_same_gradients(found[1][0], alone[1][0], ADVANTAGES)
    for name, value in first[2].items():
        assert torch.equal(value, second[2][name]), "the ranks stay together"
