"""The detector: scores by hand from given boxes, the network's part on a tiny one, and all released prompts."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor
from transformers.models.grounding_dino.image_processing_pil_grounding_dino import GroundingDinoImageProcessorPil

from src.build import build_rewards
from src.cli.compose import compose
from src.config.errors import UserError
from src.data.jsonl import read_jsonl
from src.rewards.aspects import aspect_of, objects_of
from src.rewards.base import RewardError
from src.rewards.experts.detector import Detector, numeracy_score, object_score
from src.rewards.vision.detection import Detections
from src.rewards.vision.preprocess import IMAGENET_MEAN, IMAGENET_STD, fit_between, normalise
from src.rewards.vision.spatial import LOCALITIES
from src.values import ObjectCount, PromptRecord, SpatialRelation
from tests.rewards.tiny_experts.bert import BERT_IDS
from tests.rewards.tiny_experts.detector import records, write

Tiny = Callable[..., Detector]

LEFT = SpatialRelation("cat", "dog", "left of")
CHAIR = PromptRecord("a chair", "color", ("chair",))
SENTENCE = PromptRecord("much", "object", ("roll of paper towel", "hot dog", "dog", "zebra", "cat"))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """Makes the detector on tiny weights; a setting that is not given has its default."""
    arguments = write(tmp_path_factory.mktemp("detector")) | {"box_threshold": 0.3}
    return cache(lambda **settings: Detector(**arguments | settings))


def boxes(*places: tuple[float, ...]) -> Detections:
    """Centre-size boxes, the first the most confident."""
    return Detections(torch.tensor(places).view(-1, 4), 0.9 - 0.1 * torch.arange(len(places)))


def images(number: int, side: int = 24) -> Tensor:
    return torch.rand(number, 3, side, side, generator=torch.Generator().manual_seed(4))


# -- Scores from given boxes -------------------------------------------------------------------------------------


def test_objects_are_the_fraction_of_nouns_found() -> None:
    found = {"cat": boxes((0.5, 0.5, 0.1, 0.1), (0.2, 0.2, 0.1, 0.1)), "dog": boxes()}
    assert object_score(("cat", "dog", "hot dog"), found) == pytest.approx(1 / 3)
    assert object_score(("cat",), found) == 1.0
    assert object_score(("cat", "cat", "dog"), found) == pytest.approx(2 / 3)


def test_counts_are_exact_wrong_or_absent() -> None:
    """Four boxes of cats, of which two are the same cat (IoU 9/11)."""
    cats = boxes((0.2, 0.2, 0.2, 0.2), (0.22, 0.2, 0.2, 0.2), (0.5, 0.5, 0.2, 0.2), (0.8, 0.8, 0.2, 0.2))
    found = {"cat": cats, "dog": boxes((0.5, 0.5, 0.1, 0.1))}

    def score(*counts: tuple[str, int]) -> float:
        return numeracy_score([ObjectCount(*count) for count in counts], found, 0.5)

    assert score(("cat", 3)) == 1.0
    assert score(("cat", 4)) == 0.2
    assert score(("bird", 1)) == 0.0
    assert score(("cat", 3), ("dog", 2), ("bird", 1)) == pytest.approx(1.2 / 3)


def test_released_counts_keep_most_copies() -> None:
    """Read as corners, a centre-size box ends before it begins unless it is large and at the top left.

    It then overlaps nothing, and a copy of it is counted too.
    """

    def score(cats: Detections, number: int, faithful: bool) -> float:
        return numeracy_score([ObjectCount("cat", number)], {"cat": cats}, 0.5, faithful)

    copies = boxes((0.8, 0.8, 0.2, 0.2), (0.81, 0.8, 0.2, 0.2))
    assert [score(copies, 1, faithful) for faithful in (False, True)] == [1.0, 0.2]
    assert [score(copies, 2, faithful) for faithful in (False, True)] == [0.2, 1.0]
    large = boxes((0.1, 0.1, 0.4, 0.4), (0.12, 0.1, 0.4, 0.4))
    assert [score(large, 1, faithful) for faithful in (False, True)] == [1.0, 1.0]


FOUND = {"cat": boxes((0.2, 0.5, 0.1, 0.1)), "dog": boxes((0.8, 0.5, 0.1, 0.1), (0.2, 0.2, 0.1, 0.1))}


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        (PromptRecord("p", "spatial", ("cat", "dog"), spatial=LEFT), 0.9),
        (PromptRecord("p", "numeracy", ("dog",), counts=(ObjectCount("dog", 2),)), 1.0),
        (PromptRecord("p", "numeracy", ("dog",), counts=(ObjectCount("dog", 3),)), 0.2),
        (PromptRecord("p", "complex", ("cat", "bird"), spatial=SpatialRelation("bird", "cat", "near")), 0.5),
        (PromptRecord("p", "texture", ("bird",), ("wooden bird",)), 0.0),
    ],
)
def test_the_record_decides_what_is_scored(tiny: Tiny, record: PromptRecord, expected: float) -> None:
    assert tiny().score_of(record, FOUND) == pytest.approx(expected)


def test_long_nouns_are_found_unless_as_released(tiny: Tiny) -> None:
    record = PromptRecord("p", "object", ("roll of tape", "hot dog"))
    found = {"roll of tape": FOUND["cat"], "hot dog": FOUND["dog"]}
    assert tiny().score_of(record, found) == 1.0
    assert tiny(faithful=True).score_of(record, found) == 0.5


# -- The network's part ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((384, 384), (800, 800)),
        ((480, 640), (800, 1066)),
        ((640, 480), (1066, 800)),
        ((100, 400), (333, 1332)),
        ((400, 100), (1332, 333)),
        ((800, 1000), (800, 1000)),
    ],
)
def test_pictures_fit_between_800_and_1333(size: tuple[int, int], expected: tuple[int, int]) -> None:
    assert fit_between(torch.zeros(1, 3, *size), 800, 1333).shape[-2:] == expected


@pytest.mark.parametrize(("size", "sides"), [((48, 48), (96, 200)), ((60, 80), (96, 200)), ((150, 100), (64, 90))])
def test_pictures_are_those_of_the_networks_processor(size: tuple[int, int], sides: tuple[int, int]) -> None:
    """Enlarged and reduced, up to the processor's rounding to 8 bits after each direction."""
    image = torch.randint(0, 256, (*size, 3), dtype=torch.uint8)
    processor = GroundingDinoImageProcessorPil(size={"shortest_edge": sides[0], "longest_edge": sides[1]})
    expected = processor(images=Image.fromarray(image.numpy()), return_tensors="pt").pixel_values
    pixels = fit_between(image.permute(2, 0, 1)[None] / 255, *sides)
    torch.testing.assert_close(
        normalise(pixels, IMAGENET_MEAN, IMAGENET_STD), expected, rtol=0, atol=1.1 / 255 / min(IMAGENET_STD)
    )


def test_logits_and_boxes_are_those_of_the_network_called_on_its_own(tiny: Tiny) -> None:
    """Three captions of different lengths in one batch, against one call each without any padding."""
    detector, records = tiny(), [CHAIR, SENTENCE, PromptRecord("p", "object", ("cat", "dog"))]
    captions, pixels = [detector.caption(record) for record in records], images(3, side=64)
    logits, found = detector.look(pixels, captions)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    for row, caption in enumerate(captions):
        text = " . ".join(records[row].nouns) + "."
        ids = torch.tensor([detector.tokenizer(text)["input_ids"]])
        with torch.no_grad():
            alone = detector.model(
                pixel_values=(pixels[row : row + 1] - mean.view(3, 1, 1)) / std.view(3, 1, 1), input_ids=ids
            )
        length = ids.shape[1]
        assert length == len(caption.ids)
        torch.testing.assert_close(
            logits[row, :, :length].sigmoid(), alone.logits[0, :, :length].sigmoid(), rtol=0, atol=3e-6
        )
        torch.testing.assert_close(found[row], alone.pred_boxes[0], rtol=0, atol=3e-6)
        assert (logits[row, :, length:] == -torch.inf).all()


def test_detections_are_the_phrases_means_above_the_threshold(tiny: Tiny) -> None:
    detector = tiny(box_threshold=0.6)
    caption, pixels = detector.caption(SENTENCE), images(2)
    logits, places = detector.look(pixels, [caption] * 2)
    for row, found in enumerate(detector.detect(pixels, [caption] * 2)):
        assert tuple(found) == SENTENCE.nouns
        for noun, (start, end) in zip(SENTENCE.nouns, caption.spans, strict=True):
            mean = logits[row, :, start:end].sigmoid().mean(1)
            assert torch.equal(found[noun].boxes, places[row][mean > 0.6])
            torch.testing.assert_close(found[noun].scores, mean[mean > 0.6])
    assert 0 < sum(len(value) for value in found.values()) < 6 * len(found), "else this shows nothing"


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_lower_precision_stays_near(tiny: Tiny, dtype: str) -> None:
    """The boxes' places may change rank; how likely each object is to be there at all stays near."""
    pixels = images(4)
    exact, coarse = (
        detector.look(pixels, [detector.caption(CHAIR)] * 4)[0].sigmoid()[..., 1].amax(1)
        for detector in (tiny(), tiny(dtype=dtype))
    )
    assert coarse.dtype == torch.float32
    torch.testing.assert_close(coarse, exact, rtol=0, atol=0.1)


def test_a_broken_network_is_told_from_an_absent_object(tmp_path: Path) -> None:
    detector = Detector(**write(tmp_path))
    detector.model.model.level_embed.fill_(torch.nan)
    with pytest.raises(ValueError, match=r"the network returns NaN in torch\.float32; set dtype=float32, or check"):
        detector.score(images(1), [CHAIR])


def test_details_say_what_was_scored(tiny: Tiny) -> None:
    records = [
        PromptRecord("p", "spatial", ("cat", "dog"), spatial=LEFT),
        CHAIR,
        PromptRecord("p", "numeracy", ("dog",), counts=(ObjectCount("dog", 2),)),
    ]
    scores, details = tiny().score(images(3), records)
    assert set(details) == {"detector_object", "detector_numeracy", "detector_spatial"}
    for row, name in enumerate(("detector_spatial", "detector_object", "detector_numeracy")):
        assert details[name][row] == scores[row]
        assert details[name].isnan().tolist() == [other != row for other in range(3)]


def test_without_anything_named_it_does_not_apply_unless_as_released(tiny: Tiny) -> None:
    record = PromptRecord("a nice picture")
    assert not tiny().applicable(record)
    assert tiny().applicable(PromptRecord("p", spatial=LEFT))
    faithful = tiny(faithful=True)
    assert faithful.applicable(record)
    scores, details = faithful.score(images(2), [record, CHAIR])
    assert scores[0] == 1.0
    assert scores[1] == faithful.score(images(2)[1:], [CHAIR])[0]
    assert all(values[0].isnan() for values in details.values())


def test_a_noun_twice_is_asked_for_once_unless_as_released(tiny: Tiny) -> None:
    record = PromptRecord("p", "complex", ("dog", "dog"))
    assert tiny().caption(record).phrases == ("dog",)
    assert tiny(faithful=True).caption(record).phrases == ("dog", "dog")


@pytest.mark.parametrize(
    ("record", "problem"),
    [
        (
            PromptRecord("a lot", "object", tuple(f"chair {i}" for i in range(30))),
            r"its nouns have \d+ tokens, but the network reads only 64; use fewer nouns \(prompt: 'a lot'\)",
        ),
        (
            PromptRecord("odd", "spatial", spatial=SpatialRelation("cat", "dog", "inside of")),
            r"locality 'inside of': unknown; known are left of, .* \(prompt: 'odd'\)",
        ),
        (PromptRecord("empty", "object", ("\u200b",)), r"'\\u200b' has no tokens.* \(prompt: 'empty'\)"),
    ],
)
def test_what_cannot_be_scored_names_its_own_prompt(tiny: Tiny, record: PromptRecord, problem: str) -> None:
    with pytest.raises(RewardError, match=f"reward expert 'detector': {problem}"):
        tiny().score(images(2), [CHAIR, record])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"box_threshold": 0.0}, r"box_threshold=0\.0: expected a number between 0 and 1"),
        ({"nms_threshold": 1.5}, r"nms_threshold=1\.5"),
        ({"near_distance": 0}, r"near_distance=0"),
        ({"short_side": 800, "long_side": 700}, r"short_side=800: expected > 0 and at most long_side=700"),
    ],
)
def test_wrong_settings_are_told_before_any_weight_is_read(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Detector("nowhere", **settings)


def test_the_yaml_and_a_path_make_the_detector(tmp_path: Path) -> None:
    arguments = write(tmp_path)
    keys = [f"++rewards.experts.detector.{key}={arguments[key]}" for key in ("path", "short_side", "long_side")]
    ensemble = build_rewards(compose(["experiment=bicot_lora", "rewards=detector", *keys]))
    assert ensemble.names == ("detector",)
    assert isinstance(ensemble.sources[0].experts["detector"], Detector)
    report = ensemble(images(3), records(3))
    assert report.applicable.all()
    assert report.total.isfinite().all()
    with pytest.raises(UserError, match=r"rewards\.experts\.detector\.box_threshold=2: expected a number > 0 and < 1"):
        compose(["experiment=bicot_lora", "rewards=detector", "rewards.experts.detector.box_threshold=2"])


# -- All released prompts ----------------------------------------------------------------------------------------


def everything_found(record: PromptRecord) -> dict[str, Detections]:
    """Boxes of a perfect picture: objects where the relation wants them, as many as are asked for."""
    grid = [((i % 4 + 0.5) / 4, (i // 4 + 0.5) / 4, 0.1, 0.1) for i in range(16)]
    found = {noun: boxes(grid[0]) for noun in objects_of(record)}
    found |= {count.name: boxes(*grid[: count.number]) for count in record.counts}
    if aspect_of(record) == "spatial" and record.spatial is not None:
        where = {"left": (0.2, 0.5), "right": (0.8, 0.5), "above": (0.5, 0.2), "below": (0.5, 0.8), "near": (0.4, 0.5)}
        found[record.spatial.first] = boxes((*where[LOCALITIES[record.spatial.locality]], 0.1, 0.1))
        found[record.spatial.second] = boxes((0.5, 0.5, 0.1, 0.1))
    return found


def released() -> Iterator[PromptRecord]:
    yield from read_jsonl(os.environ["T2I_R1_PROMPTS"])


@pytest.mark.slow
@pytest.mark.skipif("T2I_R1_PROMPTS" not in os.environ, reason="T2I_R1_PROMPTS does not name the released training set")
def test_every_released_prompt_can_score_in_full(tiny: Tiny) -> None:
    """Every record is routed by its type, every noun's span holds its tokens, no perfect picture is capped."""
    detector, routed = tiny(), {"spatial": 0, "numeracy": 0, "object": 0}
    tokenizer = detector.tokenizer
    for record in released():
        aspect = aspect_of(record)
        assert aspect == (record.task_type if record.task_type in ("spatial", "numeracy") else "object")
        routed[aspect] += 1
        assert detector.applicable(record)
        caption = detector.caption(record)
        assert caption.phrases == tuple(dict.fromkeys(record.nouns)), "the metadata names nothing else"
        assert list(caption.ids) == tokenizer(" . ".join(caption.phrases) + " .")["input_ids"]
        for noun, (start, end) in zip(caption.phrases, caption.spans, strict=True):
            assert list(caption.ids[start:end]) == tokenizer(noun, add_special_tokens=False)["input_ids"]
        assert BERT_IDS["[UNK]"] not in caption.ids
        perfect = 0.9 if aspect == "spatial" else 1.0
        assert detector.score_of(record, everything_found(record)) == pytest.approx(perfect), record
    assert routed == {"spatial": 2195, "numeracy": 1172, "object": 3856}


@pytest.mark.skipif("T2I_R1_PROMPTS" not in os.environ, reason="T2I_R1_PROMPTS does not name the released training set")
def test_the_released_code_caps_these_prompts(tiny: Tiny) -> None:
    """364 of 2,195 spatial prompts say "above"; "on top of" stands in complex ones only."""
    detector = tiny(faithful=True)
    spatial = [record for record in released() if record.task_type == "spatial"]
    capped = [record for record in spatial if detector.score_of(record, everything_found(record)) < 0.5]
    assert len(capped) == 364
    assert {record.spatial.locality for record in capped if record.spatial} == {"above"}


# -- Published weights -------------------------------------------------------------------------------------------


@pytest.mark.skipif(
    not {"T2I_R1_GROUNDING_DINO", "T2I_R1_CATS"} <= set(os.environ),
    reason="T2I_R1_GROUNDING_DINO (grounding-dino-tiny) and T2I_R1_CATS (COCO val2017 000000039769) name no files",
)
def test_published_values_of_two_cats() -> None:
    """transformers' own integration test: logits of "a" and "cat" and boxes of the only two queries above 0.35."""
    with Image.open(os.environ["T2I_R1_CATS"]) as image:
        width, height = image.size
        data = torch.frombuffer(bytearray(image.convert("RGB").tobytes()), dtype=torch.uint8)
    pixels = data.view(1, height, width, 3).permute(0, 3, 1, 2) / 255
    detector = Detector(os.environ["T2I_R1_GROUNDING_DINO"], box_threshold=0.35)
    found = detector.detect(pixels, [detector.caption(PromptRecord("p", nouns=("a cat",)))])[0]["a cat"]
    logits = torch.tensor([[-0.1900, -0.2161], [-0.3719, -0.3950]])
    torch.testing.assert_close(found.scores, logits.sigmoid().mean(1), rtol=0, atol=3e-3)
    centres_and_widths = torch.tensor([[0.7674, 0.4136, 0.4572], [0.2566, 0.5463, 0.4760]])
    torch.testing.assert_close(found.boxes[:, :3], centres_and_widths, rtol=0, atol=3e-3)
