"""What every reward expert owes: one case a class, every class found in src/rewards must have one.

Experts without weights have their case in this file, those with weights in `tests.rewards.tiny_experts`.
"""

from __future__ import annotations

import importlib
import inspect
import pickle
import pkgutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import src.rewards
from src.rewards.base import RewardExpert, split_scores
from src.rewards.ensemble import RewardEnsemble
from src.rewards.experts.shapes_judge import ShapesJudge
from src.shapes.splits import split_prompts, to_record
from src.values import PromptRecord
from tests.policies.tiny import exact_norms
from tests.rewards import tiny_experts
from tests.rewards.tiny_experts import TinyExpert
from tests.rewards.toy import Brightness, Glare, NamedChannel, about

IMAGES = 12


def exact(expert: RewardExpert) -> RewardExpert:
    """The expert with its networks in float64: float32 products round with the batch and the machine."""
    for network in expert.children():
        exact_norms(network.double())
    return expert


def close(expert: RewardExpert) -> dict[str, float]:
    """Bounds for what an `exact` expert gives, which makes scores of its networks' outputs in float32.

    Logits of up to 8 and sums of 16 products of unit vectors are off by 16 roundings of 6e-8 at most, on the scale that
    scores are given on: one such as 100 times a cosine is a sum of cancelling products, however small itself.
    """
    finite = [abs(bound) for bound in expert.score_range if abs(bound) < float("inf")]
    return {"rtol": 0, "atol": 16 * 2.0**-24 * max(1.0, *finite)}


@dataclass(frozen=True)
class Case:
    """How to make an expert, the records to try it on (all applicable) and images of its size."""

    make: Callable[[], RewardExpert]
    records: Callable[[], Sequence[PromptRecord]]
    pixels: Callable[[], Tensor]


def noise(side: int) -> Callable[[], Tensor]:
    return lambda: torch.rand(IMAGES, 3, side, side, generator=torch.Generator().manual_seed(3))


@cache
def drawn_records() -> tuple[PromptRecord, ...]:
    return tuple(to_record(prompt) for prompt in split_prompts("validation")[:IMAGES])


def drawn_pixels() -> Tensor:
    """Half of the pictures show what is asked (scores differ between prompts and pictures), half are noise."""
    import random

    from src.shapes.requirements import Requirement, arrange
    from src.shapes.scenes import render

    rng = random.Random(5)
    right = [arrange(Requirement.from_json(record.scene), rng) for record in drawn_records()[: IMAGES // 2]]
    return torch.cat([render(right), torch.rand(IMAGES - len(right), 3, 24, 24)])


def colours() -> list[PromptRecord]:
    return [about(("red", "green", "blue")[i % 3]) for i in range(IMAGES)]


CASES: dict[type[RewardExpert], Case] = {
    Brightness: Case(Brightness, colours, noise(8)),
    NamedChannel: Case(NamedChannel, colours, noise(8)),
    Glare: Case(Glare, colours, noise(5)),
    ShapesJudge: Case(ShapesJudge, drawn_records, drawn_pixels),
}
TINY: dict[type[RewardExpert], TinyExpert] = {module.EXPERT: module for module in tiny_experts.found()}


def tiny_case(module: TinyExpert, folder: Path) -> Case:
    arguments = module.write(folder)
    return Case(lambda: module.EXPERT(**arguments), lambda: module.records(IMAGES), noise(module.SIDE))


def experts_in_project() -> set[type[RewardExpert]]:
    """Every RewardExpert that can be made and is defined in a module of src/rewards."""
    found = set()
    for module in pkgutil.walk_packages(src.rewards.__path__, "src.rewards."):
        for value in vars(importlib.import_module(module.name)).values():
            if isinstance(value, type) and issubclass(value, RewardExpert) and not inspect.isabstract(value):
                found.add(value)
    return found


def test_every_expert_has_a_case() -> None:
    found = experts_in_project()
    assert ShapesJudge in found
    assert found <= {*CASES, *TINY}, (
        "give each new expert a Case in this file or a module in tests/rewards/tiny_experts"
    )


@pytest.fixture(scope="module", params=[*CASES, *TINY], ids=lambda kind: kind.__name__)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    if request.param in CASES:
        return CASES[request.param]
    return tiny_case(TINY[request.param], tmp_path_factory.mktemp("weights"))


def scores_of(
    expert: RewardExpert, pixels: Tensor, records: Sequence[PromptRecord]
) -> tuple[Tensor, dict[str, Tensor]]:
    scores, details = split_scores(expert.score(pixels, records))
    return scores, dict(details)


def test_facts_are_declared(case: Case) -> None:
    expert = case.make()
    low, high = expert.score_range
    assert isinstance(expert.name, str)
    assert expert.name.isidentifier(), "names become keys of configs and logs"
    assert low < high
    assert isinstance(expert.higher_is_better, bool)
    assert expert.full_state_update is False
    assert type(expert).__doc__


def test_scores_are_float32_in_range_and_vary(case: Case) -> None:
    expert = case.make()
    assert all(expert.applicable(record) for record in case.records())
    scores, details = scores_of(expert, case.pixels(), case.records())
    low, high = expert.score_range
    assert scores.shape == (IMAGES,)
    assert scores.dtype == torch.float32
    assert ((scores >= low) & (scores <= high)).all()
    assert scores.unique().numel() > 1, "the case should tell images apart, else it shows nothing"
    for value in details.values():
        assert value.shape == (IMAGES,)
        assert value.dtype == torch.float32
        assert not value.isinf().any()


def test_batched_equals_one_by_one(case: Case) -> None:
    expert, pixels, records = exact(case.make()), case.pixels(), case.records()
    scores, details = scores_of(expert, pixels, records)
    for i in range(IMAGES):
        one, one_details = scores_of(expert, pixels[i : i + 1], records[i : i + 1])
        torch.testing.assert_close(one, scores[i : i + 1], **close(expert))
        for name, value in one_details.items():
            torch.testing.assert_close(value, details[name][i : i + 1], **close(expert), equal_nan=True)


def test_neighbours_and_order_do_not_matter(case: Case) -> None:
    expert, pixels, records = exact(case.make()), case.pixels(), case.records()
    order = torch.randperm(IMAGES)
    scores, _ = scores_of(expert, pixels, records)
    shuffled, _ = scores_of(expert, pixels[order], [records[i] for i in order.tolist()])
    torch.testing.assert_close(shuffled, scores[order], **close(expert))


def test_scoring_is_a_function(case: Case) -> None:
    """Same input, same scores; no random numbers used up, the images left as they are."""
    expert, pixels, records = case.make(), case.pixels(), case.records()
    before, state = pixels.clone(), torch.get_rng_state()
    first, _ = scores_of(expert, pixels, records)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(pixels, before)
    assert torch.equal(scores_of(expert, pixels, records)[0], first)
    assert torch.equal(scores_of(case.make(), pixels, records)[0], first)


def test_metric_accumulates_the_mean_over_images(case: Case) -> None:
    """Batches of unequal size: the mean is over images, not over batches, a float32 sum of 12 scores."""
    expert, pixels, records = exact(case.make()), case.pixels(), case.records()
    singly = [scores_of(expert, pixels[i : i + 1], records[i : i + 1])[0].double().item() for i in range(IMAGES)]
    mean = IMAGES * close(expert)["atol"]
    expert.update(pixels[:5], records[:5])
    assert expert(pixels[5:], records[5:]).item() == pytest.approx(sum(singly[5:]) / (IMAGES - 5), abs=mean)
    assert expert.compute().item() == pytest.approx(sum(singly) / IMAGES, abs=mean)
    expert.reset()
    expert.update(pixels[:1], records[:1])
    assert expert.compute().item() == pytest.approx(singly[0], abs=mean)


def test_pickles_with_its_state(case: Case) -> None:
    expert, pixels, records = case.make(), case.pixels(), case.records()
    expert.update(pixels, records)
    copy = pickle.loads(pickle.dumps(expert))
    assert torch.equal(copy.compute(), expert.compute())
    assert torch.equal(scores_of(copy, pixels, records)[0], scores_of(expert, pixels, records)[0])


def test_nothing_leaks_into_the_module_that_holds_an_ensemble(case: Case) -> None:
    class Holder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rewards = RewardEnsemble([case.make()])

    holder = Holder()
    holder.rewards(case.pixels(), case.records())
    assert not holder.state_dict()
    assert not case.make().state_dict()
    assert not list(holder.parameters())
    assert list(holder.modules()) == [holder]
