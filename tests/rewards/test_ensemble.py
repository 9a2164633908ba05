"""The ensemble: totals against hand-computed ones, applicability, monitors, and everything that is no score."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from src.rewards.base import RewardError, RewardExpert
from src.rewards.combine import weighted_mean, weighted_sum
from src.rewards.ensemble import RewardEnsemble, eight_bit, report_metrics
from src.rewards.local import LocalExperts
from src.rewards.remote import RemoteExperts, RemoteSettings
from src.rewards.wire import Limits, decode_request, encode_answer
from src.values import PromptRecord
from tests.rewards.test_remote import serving
from tests.rewards.toy import Brightness, Glare, NamedChannel, about, flat_images

# Levels an 8-bit picture has.
IMAGES = flat_images((0.4, 0.2, 0.0), (0.4, 0.2, 0.0), (1.0, 1.0, 1.0))
RECORDS = [about("red"), about("green"), about("cat")]
NAN = float("nan")


class Returns(RewardExpert):
    """Gives whatever it was made with."""

    name = "returns"
    score_range = (0.0, 1.0)

    def __init__(self, value: object) -> None:
        super().__init__()
        self.value = value

    def score(self, pixels: Tensor, records: Sequence[PromptRecord]) -> Tensor:
        if isinstance(self.value, Exception):
            raise self.value
        return self.value  # type: ignore[return-value]


def same(value: Tensor, expected: list[float]) -> None:
    """To four float32 roundings of sums below 2."""
    torch.testing.assert_close(value, torch.tensor(expected), rtol=0, atol=4 * 2.0**-24 * 2, equal_nan=True)


def test_scores_applicability_and_the_weighted_sum() -> None:
    report = RewardEnsemble([Brightness(), NamedChannel()], {"named_channel": 2.0})(IMAGES, RECORDS)
    assert report.names == ("brightness", "named_channel")
    same(report.scores[:, 0], [0.2, 0.2, 1.0])
    same(report.scores[:, 1], [0.4, 0.2, NAN])
    assert report.applicable.tolist() == [[True, True], [True, True], [True, False]]
    same(report.total, [0.2 + 2 * 0.4, 0.2 + 2 * 0.2, 1.0])


def test_the_mean_keeps_prompts_with_fewer_experts_comparable() -> None:
    report = RewardEnsemble([Brightness(), NamedChannel()], {"named_channel": 3.0}, combine="mean")(IMAGES, RECORDS)
    same(report.total, [(0.2 + 3 * 0.4) / 4, (0.2 + 3 * 0.2) / 4, 1.0])


def test_a_monitor_is_scored_and_never_part_of_the_total() -> None:
    report = RewardEnsemble([Brightness(), NamedChannel()], {"named_channel": 0})(IMAGES, RECORDS)
    same(report.scores[:, 1], [0.4, 0.2, NAN])
    same(report.total, [0.2, 0.2, 1.0])
    mean = RewardEnsemble([Brightness(), NamedChannel()], {"named_channel": 0}, combine="mean")(IMAGES, RECORDS)
    same(mean.total, [0.2, 0.2, 1.0])


def test_an_expert_whose_lower_scores_are_better_is_subtracted() -> None:
    report = RewardEnsemble([NamedChannel(), Glare()], {"glare": 0.5})(IMAGES[:2], RECORDS[:2])
    same(report.scores[:, 1], [0.2, 0.2])
    same(report.total, [0.4 - 0.1, 0.2 - 0.1])


def test_names_of_a_mapping_win_so_that_one_class_can_serve_twice() -> None:
    ensemble = RewardEnsemble({"first": Brightness(), "second": Brightness()}, {"second": 0.5})
    report = ensemble(IMAGES, RECORDS)
    assert report.names == ensemble.names == ("first", "second")
    same(report.total, [0.3, 0.3, 1.5])
    assert set(report.details) == {"spread", "second/spread"}


def test_details_are_nan_where_their_expert_does_not_apply() -> None:
    class Detailed(NamedChannel):
        def score(self, pixels: Tensor, records: Sequence[PromptRecord]) -> tuple[Tensor, dict[str, Tensor]]:  # type: ignore[override]
            return super().score(pixels, records), {"rank": torch.arange(len(records)).float()}

    report = RewardEnsemble([Brightness(), Detailed()])(IMAGES[[2, 0, 1]], [RECORDS[i] for i in (2, 0, 1)])
    same(report.details["rank"], [NAN, 0.0, 1.0])
    same(report.details["spread"], [0.0, 0.4, 0.4])


def test_an_expert_that_applies_to_nothing_is_not_called() -> None:
    report = RewardEnsemble([Brightness(), NamedChannel()])(IMAGES[2:], RECORDS[2:])
    assert not report.applicable[0, 1]
    same(report.total, [1.0])


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        (torch.tensor([0.5, NAN, 0.5]), r"score nan is outside \[0\.0, 1\.0\] \(prompt: 'a green picture'\)"),
        (torch.tensor([0.5, 0.5, float("inf")]), r"score inf is outside .*'a cat picture'"),
        (torch.tensor([1.1, 0.5, 0.5]), r"score 1\.1.* is outside .*'a red picture'"),
        (torch.tensor([0.5, -0.1, 0.5]), r"score -0\.1.* is outside .*'a green picture'"),
        (torch.tensor([0.5, 0.5]), r"score is torch\.float32 \(2,\), expected float32 \(3,\)"),
        (torch.tensor([[0.5], [0.5], [0.5]]), r"score is torch\.float32 \(3, 1\)"),
        (torch.tensor([0.5, 0.5, 0.5], dtype=torch.float64), r"score is torch\.float64 \(3,\)"),
        ((torch.tensor([0.5, 0.5, 0.5]), {"extra": torch.zeros(2)}), r"detail 'extra' is torch\.float32 \(2,\)"),
    ],
)
def test_what_is_no_score_names_expert_and_prompt(value: object, problem: str) -> None:
    with pytest.raises(RewardError, match=f"reward expert 'returns': {problem}"):
        RewardEnsemble([Returns(value)])(IMAGES, RECORDS)


def test_rounding_past_the_range_is_no_error() -> None:
    same(RewardEnsemble([Returns(torch.tensor([1.0 + 1e-6]))])(IMAGES[:1], RECORDS[:1]).total, [1.0 + 1e-6])


def test_an_infinite_score_is_refused_where_the_range_has_no_bound() -> None:
    class Unbounded(Returns):
        score_range = (-math.inf, math.inf)

    with pytest.raises(RewardError, match="score inf is outside"):
        RewardEnsemble([Unbounded(torch.tensor([math.inf]))])(IMAGES[:1], RECORDS[:1])


def test_a_failing_expert_is_named_with_the_first_prompt_and_the_cause_kept() -> None:
    with pytest.raises(
        RewardError, match=r"'returns': ValueError: no such weights \(prompt: 'a red picture'\)"
    ) as caught:
        RewardEnsemble([Brightness(), Returns(ValueError("no such weights"))])(IMAGES, RECORDS)
    assert isinstance(caught.value.__cause__, ValueError)
    assert caught.value.expert == "returns"


def test_a_prompt_without_an_expert_is_never_given_a_made_up_total() -> None:
    with pytest.raises(RewardError, match=r"no expert with a weight applies to task type 'colour'.*'a cat picture'"):
        RewardEnsemble([NamedChannel()])(IMAGES, RECORDS)
    with pytest.raises(RewardError, match="no expert with a weight applies"):
        RewardEnsemble([NamedChannel(), Brightness()], {"brightness": 0})(IMAGES, RECORDS)


@pytest.mark.parametrize(
    ("experts", "options", "problem"),
    [
        ([], {}, "no expert"),
        ([Brightness(), Brightness()], {}, "two experts share a name"),
        ([Brightness()], {"weights": {"brightnes": 1.0}}, r"rewards\.weights\.brightnes: no such expert.*brightness"),
        ([Brightness()], {"weights": {"brightness": -1.0}}, r"rewards\.weights\.brightness=-1\.0: expected .*>= 0"),
        ([Brightness()], {"weights": {"brightness": NAN}}, r"rewards\.weights\.brightness=nan"),
        ([Brightness()], {"weights": {"brightness": 0.0}}, "there is no reward"),
        ([Brightness()], {"combine": "max"}, r"rewards\.combine=max: expected one of sum, mean, min, product"),
        ([Brightness()], {"on_error": "ignore"}, r"rewards\.on_error=ignore: expected one of raise, drop"),
    ],
)
def test_a_choice_that_cannot_work_names_the_key(experts: list[RewardExpert], options: dict, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        RewardEnsemble(experts, **options)


@pytest.mark.parametrize(
    ("pixels", "records"),
    [
        (IMAGES, RECORDS[:2]),
        (IMAGES[:, :2], RECORDS),
        (IMAGES.double(), RECORDS),
        (IMAGES[0], RECORDS[:1]),
        (IMAGES[:0], []),
    ],
)
def test_images_that_do_not_fit_are_refused(pixels: Tensor, records: list[PromptRecord]) -> None:
    with pytest.raises(ValueError, match="pixels: "):
        RewardEnsemble([Brightness()])(pixels, records)


def test_running_means_and_seconds() -> None:
    ensemble = RewardEnsemble([Brightness(), NamedChannel()])
    ensemble(IMAGES[:2], RECORDS[:2])
    ensemble(IMAGES[2:], RECORDS[2:])
    assert ensemble.compute() == pytest.approx({"brightness": 1.4 / 3, "named_channel": 0.3})
    assert set(ensemble.seconds) == {"brightness", "named_channel"}
    assert all(seconds > 0 for seconds in ensemble.seconds.values())
    ensemble.reset()
    assert ensemble.compute() == {}


def test_totals_can_be_trained_on() -> None:
    """No graph of the experts, and no inference tensors: both would break the loss."""
    total = RewardEnsemble([Brightness()])(IMAGES.clone().requires_grad_(), RECORDS).total
    assert not total.requires_grad
    weight = torch.ones(3, requires_grad=True)
    (weight * total).sum().backward()
    assert torch.equal(weight.grad, total)


def test_report_metrics_leave_out_what_does_not_apply() -> None:
    report = RewardEnsemble({"all": Brightness(), "channel": NamedChannel()})(IMAGES, RECORDS)
    metrics = report_metrics(report)
    assert metrics == pytest.approx(
        {
            "total/mean": (0.6 + 0.4 + 1.0) / 3,
            "total/std": torch.tensor([0.6, 0.4, 1.0]).std(correction=0).item(),
            "all/mean": 1.4 / 3,
            "all/std": torch.tensor([0.2, 0.2, 1.0]).std(correction=0).item(),
            "all/applicable": 1.0,
            "channel/mean": 0.3,
            "channel/std": 0.1,
            "channel/applicable": 2 / 3,
            "spread": (0.4 + 0.4 + 0.0) / 3,
        }
    )
    alone = report_metrics(RewardEnsemble([Brightness(), NamedChannel()])(IMAGES[2:], RECORDS[2:]))
    assert "named_channel/mean" not in alone
    assert alone["named_channel/applicable"] == 0


def test_combinations_never_read_what_does_not_apply() -> None:
    scores = torch.tensor([[1.0, NAN], [2.0, float("inf")]])
    applicable = torch.tensor([[True, False], [True, False]])
    for combine in (weighted_sum, weighted_mean):
        same(combine(scores, applicable, torch.tensor([1.0, 1.0])), [1.0, 2.0])
        same(combine(scores, torch.ones(2, 2, dtype=torch.bool), torch.tensor([1.0, 0.0])), [1.0, 2.0])


class FailsOn(Brightness):
    """`Brightness`, and a failure of some kind wherever one of the prompts says so."""

    name = "fails_on"

    def __init__(self, word: str, how: str = "raise") -> None:
        super().__init__()
        self.word, self.how, self.calls = word, how, 0

    def score(self, pixels: Tensor, records: Sequence[PromptRecord]) -> tuple[Tensor, dict[str, Tensor]]:  # type: ignore[override]
        self.calls += 1
        scores, details = super().score(pixels, records)
        bad = torch.tensor([self.word in record.prompt for record in records])
        if not bad.any():
            return scores, dict(details)
        if self.how == "raise":
            raise MemoryError("no room")
        if self.how == "NaN":
            return scores.masked_fill(bad, NAN), dict(details)
        return scores[:, None], dict(details)


# Two groups of two: the second is the one that fails.
GROUPS = flat_images((0.4, 0.2, 0.0), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0), (0.4, 0.2, 0.0))
OF_GROUPS = [about("red"), about("red"), about("green"), about("green")]


@pytest.mark.parametrize("how", ["raise", "NaN", "shape"])
def test_a_failing_expert_leaves_its_whole_group_and_no_other(how: str) -> None:
    expert = FailsOn("green", how)
    rewards = RewardEnsemble([expert, NamedChannel()], on_error="drop")
    report = rewards(GROUPS, OF_GROUPS, group_size=2)
    assert report.failed.tolist() == [[False, False]] * 2 + [[True, False]] * 2
    assert report.applicable.tolist() == [[True, True]] * 2 + [[False, True]] * 2
    same(report.total, [0.2 + 0.4, 2.0, 0.0, 0.2])
    same(report.details["spread"], [0.4, 0.0, NAN, NAN])
    assert expert.calls == 3, "all at once, then each group"
    assert rewards.compute()["fails_on"] == pytest.approx(0.6), "the mean is over what was scored"
    assert "reward expert 'fails_on'" in rewards.problems["fails_on"]
    figures = report_metrics(report, 2)
    assert figures["fails_on/failed"] == figures["fails_on/applicable"] == 0.5
    assert figures["fails_on/group_std"] == pytest.approx(0.4)


def test_a_group_without_any_expert_has_no_reward() -> None:
    """Nothing is made up: NaN, in the total that trains and in the raw one, and no figure of it."""
    rewards = RewardEnsemble([FailsOn("green"), NamedChannel()], {"named_channel": 0}, on_error="drop")
    report = rewards(GROUPS, OF_GROUPS, group_size=2)
    assert report.judged.tolist() == [True, True, False, False]
    same(report.total, [0.2, 1.0, NAN, NAN])
    assert report_metrics(report)["total/mean"] == pytest.approx(0.6)
    normalised = RewardEnsemble([FailsOn("green")], normalise="group", on_error="drop")
    report = normalised.normalised(normalised(GROUPS, OF_GROUPS, 2), {}, 2)
    assert report.judged.tolist() == [True, True, False, False]


def test_without_groups_an_image_that_lost_an_expert_has_no_total() -> None:
    """One expert less would make it incomparable with the other images; a monitor may fail."""
    report = RewardEnsemble([FailsOn("green"), NamedChannel()], on_error="drop")(GROUPS, OF_GROUPS)
    same(report.total, [0.6, 2.0, NAN, NAN])
    same(report.scores[:, 1], [0.4, 1.0, 0.0, 0.2])
    watched = RewardEnsemble([FailsOn("green"), NamedChannel()], {"fails_on": 0}, on_error="drop")
    same(watched(GROUPS, OF_GROUPS).total, [0.4, 1.0, 0.0, 0.2])


def test_prompts_no_expert_applies_to_are_no_failure() -> None:
    rewards = RewardEnsemble([NamedChannel()], on_error="drop")
    with pytest.raises(RewardError, match="no expert with a weight applies"):
        rewards(GROUPS[:1], [about("cat")])
    report = rewards(GROUPS[:2], [about("cat"), about("red")], every_prompt=False)
    same(report.total, [NAN, 1.0])


def test_experts_see_the_picture_as_it_is_saved() -> None:
    """Eight bits a channel: what a PNG of the pixels holds, and a served expert is sent."""

    class Sees(Brightness):
        def score(self, pixels: Tensor, records: Sequence[PromptRecord]) -> tuple[Tensor, dict[str, Tensor]]:  # type: ignore[override]
            self.seen = pixels
            return super().score(pixels, records)  # type: ignore[return-value]

    expert, pixels = Sees(), torch.rand(3, 3, 4, 4)
    RewardEnsemble([expert])(pixels, RECORDS)
    levels = (pixels.clamp(0, 1) * 255).round().to(torch.uint8)
    assert torch.equal(expert.seen, levels.float() / 255)
    assert torch.equal((expert.seen * 255).round().to(torch.uint8), levels)


class Travels(Brightness):
    """Remembers where it was sent, and where it was when it scored."""

    def __init__(self) -> None:
        super().__init__()
        self.sent: list[str] = []

    def to(self, device: object) -> Travels:  # type: ignore[override]
        self.sent.append(str(device))
        return self

    def score(self, pixels: Tensor, records: Sequence[PromptRecord]) -> tuple[Tensor, dict[str, Tensor]]:  # type: ignore[override]
        self.sent.append("scores")
        if not pixels.any():
            raise ValueError("black")
        return super().score(pixels, records)  # type: ignore[return-value]


def test_placement() -> None:
    """On the training device, on one of its own, or there while it scores only, a failure included."""
    experts = {"here": Travels(), "fixed": Travels(), "offloaded": Travels()}
    rewards = RewardEnsemble(experts, devices={"fixed": "cuda:1", "offloaded": "offload"}, on_error="drop")
    rewards.to("cuda:0")
    assert [expert.sent for expert in experts.values()] == [["cuda:0"], ["cuda:1"], ["cpu"]]
    rewards(IMAGES, RECORDS)
    assert experts["here"].sent[1:] == experts["fixed"].sent[1:] == ["scores"]
    assert experts["offloaded"].sent[1:] == ["cuda:0", "scores", "cpu"]
    rewards(IMAGES[:1] * 0, RECORDS[:1])
    assert experts["offloaded"].sent[-3:] == ["cuda:0", "scores", "cpu"]


class Heavy(Brightness):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def weight_bytes(self) -> int:
        return self.size


@pytest.mark.parametrize(
    ("device", "stays"), [("cuda:0", 1 + 2 + 4), ("cuda:1", 1 + 2 + 8), ("cuda", 1 + 2 + 4), ("cpu", 1 + 16)]
)
def test_what_stays_on_the_training_device(device: str, stays: int) -> None:
    """Also what is put there by name; what is offloaded is there while it scores only."""
    devices = {"named": "cuda", "first": "cuda:0", "second": "cuda:1", "host": "cpu", "offloaded": "offload"}
    experts = {name: Heavy(2**place) for place, name in enumerate(("plain", *devices))}
    assert RewardEnsemble(experts, devices=devices).device_bytes(torch.device(device)) == stays


def test_the_order_of_columns_can_be_given() -> None:
    rewards = RewardEnsemble([Brightness(), NamedChannel()], order=("named_channel", "brightness"))
    report = rewards(IMAGES, RECORDS)
    assert report.names == rewards.names == ("named_channel", "brightness")
    same(report.scores[:, 0], [0.4, 0.2, NAN])


class Sees(RewardExpert):
    """Keeps the pixels it was given."""

    name = "sees"
    score_range = (0.0, 1.0)

    def score(self, pixels: Tensor, records: Sequence[PromptRecord]) -> Tensor:
        self.seen = pixels
        return pixels.flatten(1).mean(1)


@pytest.mark.parametrize("faithful", [False, True])
def test_experts_see_the_levels_of_the_released_code_under_faithful(faithful: bool) -> None:
    """Here and over the wire. As released: ``visual_img[:] = np.clip((dec + 1) / 2 * 255, 0, 255)``, into uint8."""
    decoded = torch.rand(2, 3, 24, 24, generator=torch.Generator().manual_seed(0)) * 2.2 - 1.1
    scaled = np.clip((decoded.numpy() + 1) / 2 * 255, 0, 255)
    released = np.zeros(scaled.shape, np.uint8)
    released[:] = scaled
    levels = released if faithful else scaled.round().astype(np.uint8)
    assert 0.4 < (released != scaled.round()).mean() < 0.55, "the two are told apart"
    pixels = (decoded * 0.5 + 0.5).clamp(0.0, 1.0)  # as `JanusPolicy.paint`
    expert = Sees()
    records = [about("red"), about("green")]
    local = RewardEnsemble([expert], truncate=faithful)(pixels, records)
    assert torch.equal(expert.seen, torch.from_numpy(levels).float() / 255.0)
    arrived: list[Tensor] = []

    def scored(body: bytes) -> tuple[int, bytes]:
        asked, there = decode_request(body, Limits()), LocalExperts({"sees": Sees()})
        arrived.append(asked.pixels)
        answers = there.score(asked.pixels, asked.records, ("sees",)) if asked.records else {}
        return 200, json.dumps(encode_answer(there.facts, {}, answers, len(asked.records))).encode()

    with serving(scored) as served:
        remote = RemoteExperts(RemoteSettings(served.url), ["sees"])
        report = RewardEnsemble(elsewhere=remote, truncate=faithful)(pixels, records)
    assert torch.equal(arrived[-1], expert.seen)
    assert torch.equal(report.scores, local.scores)


def test_pixels_that_are_levels_already_stay_so() -> None:
    levels = torch.arange(256) / 255.0
    for truncate in (False, True):
        assert torch.equal(eight_bit(levels, truncate), levels)
        assert eight_bit(torch.tensor([NAN]), truncate).isnan().all()
