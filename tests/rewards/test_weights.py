"""Reading checkpoints: what is refused, and how it is told."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import pytest
import torch

from src.rewards.vision.weights import WeightsMismatch, as_dtype, check_fit, read_checkpoint


def test_dtypes_have_their_torch_names() -> None:
    assert [as_dtype(name) for name in ("float32", "bfloat16", "float16")] == [
        torch.float32,
        torch.bfloat16,
        torch.float16,
    ]
    with pytest.raises(ValueError, match="dtype=fp16: expected one of float32, bfloat16, float16"):
        as_dtype("fp16")


def test_only_dicts_of_tensors_are_read(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(2), "epoch": 3}, tmp_path / "fine.pt")
    assert read_checkpoint(tmp_path / "fine.pt")["a"].tolist() == [1.0, 1.0]
    torch.save({"a": Fraction(1, 2)}, tmp_path / "object.pt")
    with pytest.raises(WeightsMismatch, match=r"object\.pt: cannot be read as a checkpoint of tensors"):
        read_checkpoint(tmp_path / "object.pt")
    torch.save([torch.ones(2)], tmp_path / "list.pt")
    with pytest.raises(WeightsMismatch, match=r"list\.pt: contains a list, expected a dict of tensors"):
        read_checkpoint(tmp_path / "list.pt")
    (tmp_path / "text.pt").write_text("version https://git-lfs.github.com/spec/v1")
    with pytest.raises(WeightsMismatch, match=r"text\.pt: cannot be read"):
        read_checkpoint(tmp_path / "text.pt")


def test_all_that_does_not_fit_is_told_at_once() -> None:
    check_fit(Path("model"), set(), set(), set())
    with pytest.raises(WeightsMismatch) as caught:
        check_fit(Path("model"), {"g", "a", "b", "c", "d", "e"}, ["y"], [("w", torch.Size([2]), torch.Size([3, 1]))])
    assert str(caught.value) == (
        "model: these weights do not fit"
        " (6 missing: a, b, c, d, e ...; 1 left over: y; 1 of another shape: w (2,) instead of (3, 1))"
    )
