"""Experts around a frozen model: where it lives, in what it computes, how rows become batches."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from src.rewards.base import RewardExpert, split_scores
from src.rewards.vision.frozen import FrozenModelExpert, batches_of_equal_length, in_chunks
from src.values import PromptRecord
from tests.rewards import tiny_experts
from tests.rewards.tiny_experts import TinyExpert
from tests.rewards.toy import about


def dropping(weight: float) -> nn.Module:
    model = nn.Sequential(nn.Dropout(0.9), nn.Linear(1, 1, bias=False))
    model[1].weight.data.fill_(weight)
    return model


class Weighted(FrozenModelExpert):
    """The mean pixel times a weight that is read from a file."""

    name = "weighted"
    score_range = (0.0, 10.0)

    def __init__(self, file: Path, batch_size: int = 2) -> None:
        super().__init__(lambda: dropping(float(file.read_text())), batch_size)
        self.sizes: list[int] = []

    def score_batch(self, pixels: Tensor, records: Sequence[PromptRecord]) -> Tensor:
        self.sizes.append(len(pixels))
        out: Tensor = self.model(pixels.mean(dim=(1, 2, 3))[:, None])[:, 0]
        assert not out.requires_grad
        return out


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "weight.txt").write_text("3.0")
    return tmp_path / "weight.txt"


PIXELS = torch.linspace(0, 1, 5)[:, None, None, None].expand(5, 3, 2, 2)
RECORDS = [about("red")] * 5


def test_rows_are_scored_in_batches_in_order(file: Path) -> None:
    expert = Weighted(file)
    torch.testing.assert_close(expert.score(PIXELS, RECORDS), 3 * torch.linspace(0, 1, 5))
    assert expert.sizes == [2, 2, 1]


@given(st.integers(0, 50), st.integers(1, 60))
def test_chunks_hold_every_row_once_in_order(rows: int, size: int) -> None:
    pieces = in_chunks(list(range(rows)), size)
    assert [row for piece in pieces for row in piece] == list(range(rows))
    assert all(len(piece) == size for piece in pieces[:-1])
    assert all(1 <= len(piece) <= size for piece in pieces)


@given(st.lists(st.integers(1, 4), max_size=20), st.integers(1, 6))
def test_batches_hold_rows_of_one_length_each_once(lengths: list[int], size: int) -> None:
    batches = batches_of_equal_length(lengths, size)
    assert sorted(row for batch in batches for row in batch) == list(range(len(lengths)))
    for batch in batches:
        assert len({lengths[row] for row in batch}) == 1
        assert batch == sorted(batch)
        assert len(batch) <= size
    assert batches_of_equal_length([5, 7, 5, 5, 7], 2) == [[0, 2], [3], [1, 4]]


def test_scores_need_no_gradient_and_no_autocast(file: Path) -> None:
    """The caller may train in mixed precision; 1/3 in bfloat16 would be 0.334."""
    expert = Weighted(file)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        score = expert.score(torch.full((1, 3, 2, 2), 1 / 9), [about("red")])
    assert score.item() == pytest.approx(1 / 3, abs=1e-7)
    assert not any(parameter.requires_grad for parameter in expert.model.parameters())


def test_the_model_is_no_part_of_the_metric_yet_moves_with_it(file: Path) -> None:
    expert = Weighted(file)
    assert not expert.state_dict()
    assert not list(expert.parameters())
    assert list(expert.children()) == []
    assert expert.train().model.training is False, "dropout stays off whatever mode the holder is put into"
    moved = expert.to("meta")
    assert moved is expert
    assert expert.device.type == expert.model[1].weight.device.type == expert.score_sum.device.type == "meta"


def test_dtype_conversions_leave_the_model_as_it_was_loaded(file: Path) -> None:
    assert Weighted(file).half().model[1].weight.dtype == torch.float32


def test_a_pickle_holds_no_weights(file: Path) -> None:
    expert = Weighted(file, batch_size=3)
    expert.update(PIXELS, RECORDS)
    stored = pickle.dumps(expert)
    file.write_text("4.0")
    again = pickle.loads(stored)
    assert again.batch_size == 3
    assert again.compute() == expert.compute()
    assert again.score(PIXELS[-1:], RECORDS[:1]).item() == 4.0, "read from the file anew"
    again.update(PIXELS, RECORDS)
    assert again.compute().item() == pytest.approx((1.5 + 2.0) / 2)
    assert copy.deepcopy(expert).compute() == expert.compute()


def test_batch_size_is_checked_before_anything_is_loaded(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="batch_size=0: expected at least 1"):
        Weighted(tmp_path / "nowhere", batch_size=0)


Tiny = tuple[TinyExpert, dict[str, object]]
FROZEN = [module for module in tiny_experts.found() if issubclass(module.EXPERT, FrozenModelExpert)]


@pytest.fixture(scope="module", params=FROZEN, ids=lambda module: module.EXPERT.__name__)
def tiny(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return request.param, request.param.write(tmp_path_factory.mktemp("weights"))


def scores_of(expert: RewardExpert, pixels: Tensor, records: Sequence[PromptRecord]) -> Tensor:
    """The scores, without an expert's details."""
    return split_scores(expert.score(pixels, records))[0]


def noise(module: TinyExpert) -> Tensor:
    return torch.rand(6, 3, module.SIDE, module.SIDE, generator=torch.Generator().manual_seed(9))


def test_every_expert_moves_its_weights(tiny: Tiny) -> None:
    module, arguments = tiny
    expert = module.EXPERT(**arguments).to("meta")
    assert isinstance(expert, FrozenModelExpert)
    assert {value.device.type for value in (*expert.model.parameters(), *expert.model.buffers())} == {"meta"}


def test_batch_size_changes_no_score(tiny: Tiny) -> None:
    module, arguments = tiny
    scores = [
        scores_of(module.EXPERT(**arguments | {"batch_size": size}), noise(module), module.records(6))
        for size in (1, 4, 100)
    ]
    for other in scores[1:]:
        torch.testing.assert_close(other, scores[0], rtol=1e-6, atol=1e-6)


def test_half_precision_is_close_and_deterministic(tiny: Tiny) -> None:
    module, arguments = tiny
    pixels, records = noise(module), module.records(6)
    exact = scores_of(module.EXPERT(**arguments | {"dtype": "float32"}), pixels, records)
    half = module.EXPERT(**arguments | {"dtype": "bfloat16"})
    assert {value.dtype for value in half.model.parameters()} == {torch.bfloat16}  # type: ignore[attr-defined]
    scores = scores_of(half, pixels, records)
    assert scores.dtype == torch.float32
    assert torch.equal(scores_of(half, pixels, records), scores)
    width = exact.max() - exact.min()
    assert (scores - exact).abs().mean() < 0.5 * width, "rounding must not drown what tells images apart"
