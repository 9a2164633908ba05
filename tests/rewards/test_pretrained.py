"""Published directories: what is read, and what is refused rather than left as initialised."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from src.hub import WeightsNotFound
from src.rewards.vision.frozen import FrozenModelExpert
from src.rewards.vision.weights import WeightsMismatch
from tests.rewards.tiny_experts import detector, vqa

Make = Callable[..., FrozenModelExpert]


@pytest.fixture(scope="module", params=[detector, vqa], ids=["detector", "vqa"])
def written(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Make, Path]:
    """What makes an expert, and the directory of its tiny weights."""
    folder = tmp_path_factory.mktemp("weights")
    request.param.write(folder)
    return request.param.EXPERT, folder


@pytest.fixture
def copied(written: tuple[Make, Path], tmp_path: Path) -> tuple[Make, Path]:
    """The same with a directory to spoil."""
    return written[0], Path(shutil.copytree(written[1], tmp_path / "model"))


def test_weights_are_read_as_they_are(written: tuple[Make, Path]) -> None:
    make, folder = written
    model = make(folder).model
    theirs = type(model).from_pretrained(folder).state_dict()
    assert all(torch.equal(weight, theirs[name]) for name, weight in model.state_dict().items())


def test_the_model_follows_to_a_device_in_its_own_dtype(written: tuple[Make, Path]) -> None:
    expert = written[0](written[1], dtype="bfloat16")
    assert expert.device == expert.model.device == torch.device("cpu")
    expert.to("meta")
    assert expert.device == expert.model.device == torch.device("meta")
    assert expert.model.dtype == torch.bfloat16


def test_a_missing_directory_is_named(written: tuple[Make, Path]) -> None:
    with pytest.raises(WeightsNotFound, match="path=nowhere: no such directory"):
        written[0]("nowhere")


def test_another_kind_of_model_is_refused(copied: tuple[Make, Path]) -> None:
    make, folder = copied
    (folder / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(WeightsMismatch, match=r"config\.json: model_type is 'bert', expected .* as path"):
        make(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(WeightsMismatch, match=r"config\.json: cannot be read"):
        make(folder)


def test_missing_weights_are_refused(copied: tuple[Make, Path]) -> None:
    make, folder = copied
    weights = load_file(folder / "model.safetensors")
    gone = next(name for name in weights if name.endswith("query.weight"))
    save_file({name: weight for name, weight in weights.items() if name != gone}, folder / "model.safetensors")
    with pytest.raises(WeightsMismatch, match=r"model: these weights do not fit \(1 missing: .*q\w*\.weight\)"):
        make(folder)


def test_a_directory_without_weights_is_refused(copied: tuple[Make, Path]) -> None:
    make, folder = copied
    (folder / "model.safetensors").unlink()
    with pytest.raises(OSError, match=r"model\.safetensors"):
        make(folder)


@pytest.mark.parametrize(("setting", "value"), [("dtype", "half"), ("batch_size", 0)])
def test_wrong_settings_are_told_before_weights_are_read(
    copied: tuple[Make, Path], setting: str, value: object
) -> None:
    make, folder = copied
    (folder / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=f"{setting}={value}: expected"):
        make(folder, **{setting: value})
