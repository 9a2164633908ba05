"""No weight of a reward expert is on the training path: not in the module, its state, the optimiser or DDP."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import lightning as L
import torch
from torch import Tensor, nn

from src.rewards.base import RewardExpert
from src.values import PromptRecord
from tests.training.lightning_pieces import fit, toy_module


class Network(RewardExpert):
    """An expert with weights that ask for gradients, as a carelessly loaded one may."""

    name = "network"
    score_range = (0.0, 1.0)

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(3, 1)

    def score(self, pixels: Tensor, records: Sequence[PromptRecord]) -> Tensor:
        return self.net(pixels.flatten(2).mean(2)).sigmoid()[:, 0]


class CheckpointKeys(L.Callback):
    """What Lightning would write."""

    def __init__(self) -> None:
        self.names: set[str] = set()

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.names = set(trainer._checkpoint_connector.dump_checkpoint()["state_dict"])


def test_experts_stay_apart(tmp_path: Path) -> None:
    expert, seen = Network(), CheckpointKeys()
    weights = {id(parameter) for parameter in expert.parameters()}
    before = [parameter.clone() for parameter in expert.parameters()]
    module = toy_module(expert=expert, max_steps=2)
    trainer, _ = fit(module, tmp_path, callbacks=(seen,))
    assert weights
    assert not weights & {id(parameter) for parameter in module.parameters()}
    assert not weights & {id(p) for group in trainer.optimizers[0].param_groups for p in group["params"]}
    # DDP takes a module's parameters and buffers, FSDP its submodules.
    assert expert not in set(module.modules())
    assert not any("net.weight" in name and "network" in name for name in module.state_dict())
    assert seen.names == {name for name, p in module.named_parameters() if p.requires_grad}
    assert all(parameter.grad is None for parameter in expert.parameters())
    assert all(torch.equal(a, b) for a, b in zip(before, expert.parameters(), strict=True))
