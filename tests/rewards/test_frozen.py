"""Networks behind experts: out of sight of state dicts, on the expert's device, in their own dtype, and checked."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from src.hub import WeightsNotFound
from src.rewards.base import RewardExpert
from src.rewards.detector import Detector
from src.rewards.git_vqa import GitVqa
from tests.rewards.tiny import git_directory, grounding_dino_directory

KINDS = [(Detector, grounding_dino_directory, "detector"), (GitVqa, git_directory, "vqa")]
Kind = Callable[..., RewardExpert]


@pytest.fixture(params=KINDS, ids=lambda kind: kind[2])
def kind(request: pytest.FixtureRequest) -> tuple[Kind, Callable[[], Path], str]:
    return request.param


def copied(folder: Path, to: Path) -> Path:
    return Path(shutil.copytree(folder, to / "model"))


def test_the_network_is_no_part_of_the_expert(kind: tuple[Kind, Callable[[], Path], str]) -> None:
    expert = kind[0](kind[1]())
    assert not expert.state_dict()
    assert not list(expert.parameters())
    assert list(expert.modules()) == [expert]
    expert.train()
    assert not expert.network.training
    assert not any(weight.requires_grad for weight in expert.network.parameters())


def test_the_network_follows_to_a_device_and_keeps_its_dtype(kind: tuple[Kind, Callable[[], Path], str]) -> None:
    expert = kind[0](kind[1](), dtype="bfloat16")
    assert expert.device == expert.network.device == torch.device("cpu")
    expert.set_dtype(torch.float64)
    assert expert.network.dtype == torch.bfloat16
    moved = expert.to("meta")
    assert moved.device == moved.network.device == torch.device("meta")
    assert moved.network.dtype == torch.bfloat16


def test_mixed_precision_does_not_reach_the_network(kind: tuple[Kind, Callable[[], Path], str]) -> None:
    expert = kind[0](kind[1]())
    with torch.autocast("cpu", torch.bfloat16), expert.looking():
        assert (torch.eye(2) @ torch.eye(2)).dtype == torch.float32
        assert not torch.is_grad_enabled()


def test_a_copy_is_a_network_of_its_own(kind: tuple[Kind, Callable[[], Path], str]) -> None:
    expert = kind[0](kind[1](), dtype="bfloat16")
    state = torch.get_rng_state()
    twin = copy.deepcopy(expert)
    assert torch.equal(torch.get_rng_state(), state)
    assert twin.network is not expert.network
    assert twin.network.dtype == torch.bfloat16
    assert not twin.network.training
    theirs = twin.network.state_dict()
    assert all(torch.equal(weight, theirs[name]) for name, weight in expert.network.state_dict().items())


def test_a_missing_directory_is_named(kind: tuple[Kind, Callable[[], Path], str], tmp_path: Path) -> None:
    with pytest.raises(WeightsNotFound, match=rf"{kind[2]}\.path=.*nowhere: no such directory"):
        kind[0](tmp_path / "nowhere")


def test_another_kind_of_model_is_refused(kind: tuple[Kind, Callable[[], Path], str], tmp_path: Path) -> None:
    """Its weights would be left as initialised, all of them, with a warning at most."""
    folder = copied(kind[1](), tmp_path)
    (folder / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(WeightsNotFound, match=rf"model_type is 'bert', expected .* as {kind[2]}\.path"):
        kind[0](folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(WeightsNotFound, match=r"config\.json: cannot be read"):
        kind[0](folder)


def test_missing_weights_are_refused(kind: tuple[Kind, Callable[[], Path], str], tmp_path: Path) -> None:
    folder = copied(kind[1](), tmp_path)
    weights = load_file(folder / "model.safetensors")
    gone = next(name for name in weights if name.endswith("query.weight"))
    save_file({name: weight for name, weight in weights.items() if name != gone}, folder / "model.safetensors")
    with pytest.raises(WeightsNotFound, match=rf"{kind[2]}\.path=.*: 1 weights are missing, such as .*q\w*\.weight"):
        kind[0](folder)


def test_a_directory_without_weights_is_refused(kind: tuple[Kind, Callable[[], Path], str], tmp_path: Path) -> None:
    folder = copied(kind[1](), tmp_path)
    (folder / "model.safetensors").unlink()
    with pytest.raises(WeightsNotFound, match=rf"{kind[2]}\.path=.*: cannot be loaded"):
        kind[0](folder)


def test_an_unknown_dtype_is_named(kind: tuple[Kind, Callable[[], Path], str]) -> None:
    with pytest.raises(ValueError, match=rf"{kind[2]}\.dtype=half: expected one of float32, bfloat16, float16"):
        kind[0](kind[1](), dtype="half")
