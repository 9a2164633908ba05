"""Weight files: which are found, what is read of them, and what is refused without running anything."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from src.policies.weight_files import CheckpointError, mapped_tensors, read_json, weight_files


def two() -> dict[str, Tensor]:
    return {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor([1.5, -2.0], dtype=torch.bfloat16)}


def write_index(folder: Path, name: str, places: dict[str, str]) -> None:
    (folder / name).write_text(json.dumps({"metadata": {}, "weight_map": places}))


def write(folder: Path, kind: str) -> list[str]:
    """`two` in a way checkpoints are written; returns the names of the files with weights."""
    weights, parts = two(), [{key: value} for key, value in two().items()]
    if kind == "safetensors":
        save_file(weights, folder / "model.safetensors")
        return ["model.safetensors"]
    if kind == "sharded safetensors":
        names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
        for part, name in zip(parts, names, strict=True):
            save_file(part, folder / name)
        write_index(folder, "model.safetensors.index.json", dict(zip("ab", names, strict=True)))
        return names
    if kind == "bin":
        torch.save(weights, folder / "pytorch_model.bin")
        return ["pytorch_model.bin"]
    if kind == "sharded bin":
        names = ["pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin"]
        for part, name in zip(parts, names, strict=True):
            torch.save(part, folder / name)
        write_index(folder, "pytorch_model.bin.index.json", dict(zip("ab", names, strict=True)))
        return names
    if kind == "old bin":
        torch.save(weights, folder / "pytorch_model.bin", _use_new_zipfile_serialization=False)
        return ["pytorch_model.bin"]
    if kind == "other names":
        save_file(parts[0], folder / "janus-1.safetensors")
        save_file(parts[1], folder / "janus-2.safetensors")
        return ["janus-1.safetensors", "janus-2.safetensors"]
    assert kind == "pt"
    torch.save(weights, folder / "weights.pt")
    return ["weights.pt"]


KINDS = ("safetensors", "sharded safetensors", "bin", "sharded bin", "old bin", "other names", "pt")


@pytest.mark.parametrize("kind", KINDS)
def test_however_they_are_written_the_tensors_are_the_same(tmp_path: Path, kind: str) -> None:
    names = write(tmp_path, kind)
    for other in ("training_args.bin", "optimizer.pt", "adapter_model.safetensors"):
        (tmp_path / other).write_bytes(b"no weights of the model")
    assert [file.name for file in weight_files(tmp_path)] == names
    found = mapped_tensors(tmp_path)
    assert found.keys() == two().keys()
    for name, value in two().items():
        assert found[name].dtype == value.dtype
        assert torch.equal(found[name], value)


def test_safetensors_come_first(tmp_path: Path) -> None:
    write(tmp_path, "bin")
    write(tmp_path, "sharded safetensors")
    assert {file.suffix for file in weight_files(tmp_path)} == {".safetensors"}


class Runs:
    """Unpickled, it would create a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> object:
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("new_format", [True, False])
def test_nothing_in_a_pickled_file_is_run(tmp_path: Path, new_format: bool) -> None:
    trace = tmp_path / "it was run"
    file = tmp_path / "pytorch_model.bin"
    torch.save({**two(), "c": Runs(trace)}, file, _use_new_zipfile_serialization=new_format)
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin: .*nothing in it was run"):
        mapped_tensors(tmp_path)
    assert not trace.exists()
    torch.load(file, weights_only=False)
    assert trace.exists(), "the trap shall work"


@pytest.mark.parametrize("content", [[torch.zeros(1)], {"a": torch.zeros(1), "epoch": 3}, {"state_dict": two()}])
def test_a_pickled_file_of_something_else_is_named(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin: not a state dict"):
        mapped_tensors(tmp_path)


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
@pytest.mark.parametrize("content", [b"", b"\0" * 40, b"PK\x03\x04 cut off"])
def test_a_damaged_file_is_named(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=name):
        mapped_tensors(tmp_path)


def test_a_file_cut_off_is_named(tmp_path: Path) -> None:
    for kind, name in (("safetensors", "model.safetensors"), ("bin", "pytorch_model.bin")):
        folder = tmp_path / kind
        folder.mkdir()
        write(folder, kind)
        (folder / name).write_bytes((folder / name).read_bytes()[:-20])
        with pytest.raises(CheckpointError, match=name):
            mapped_tensors(folder)


@pytest.mark.parametrize(
    ("places", "words"),
    [
        ({"a": "model-2.safetensors"}, r"shard model-2\.safetensors is missing"),
        ({"a": "../elsewhere.safetensors"}, "must be next to its index"),
        ({}, "no weight_map"),
    ],
)
def test_an_index_that_cannot_be_followed(tmp_path: Path, places: dict[str, str], words: str) -> None:
    write_index(tmp_path, "model.safetensors.index.json", places)
    with pytest.raises(CheckpointError, match=rf"index\.json: .*{words}"):
        weight_files(tmp_path)


def test_no_weights_at_all(tmp_path: Path) -> None:
    (tmp_path / "training_args.bin").write_bytes(b"x")
    with pytest.raises(CheckpointError, match=r"contains no weights, neither \*\.safetensors nor \*\.bin"):
        weight_files(tmp_path)


@pytest.mark.parametrize(("text", "words"), [("[1]", "expected a JSON object, found list"), ("{", "not valid JSON")])
def test_json_that_is_no_object(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=words):
        read_json(tmp_path / "config.json")
    with pytest.raises(CheckpointError, match="not found"):
        read_json(tmp_path / "other.json")
