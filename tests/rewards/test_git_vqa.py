"""The questioner: which questions it asks, and its answers against the network called on its own."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from src.build import build_rewards
from src.cli.compose import compose
from src.config.errors import UserError
from src.data.jsonl import read_jsonl
from src.rewards.experts.git_vqa import GitVqa, questions_of
from src.rewards.vision.preprocess import CLIP_MEAN, CLIP_STD, fill_and_crop, normalise
from src.values import ObjectCount, PromptRecord, SpatialRelation
from tests.rewards.tiny_experts.bert import vocabulary
from tests.rewards.tiny_experts.vqa import records, write

Tiny = Callable[..., GitVqa]

RELATION = PromptRecord("p", "spatial", ("cat", "dog"), spatial=SpatialRelation("cat", "dog", "near"))
COUNT = PromptRecord("p", "numeracy", ("cat",), counts=(ObjectCount("cat", 2),))
RED = PromptRecord("p", "color", ("chair", "zebra"), ("red chair", "striped zebra"))
CAT = PromptRecord("p", "object", ("cat",))
NOTHING = PromptRecord("p", "non")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """Makes the expert on tiny weights."""
    arguments = write(tmp_path_factory.mktemp("vqa"))
    return cache(lambda **settings: GitVqa(**arguments | settings))


def images(number: int, side: int = 32) -> Tensor:
    return torch.rand(number, 3, side, side, generator=torch.Generator().manual_seed(6))


@pytest.mark.parametrize(
    ("record", "questions"),
    [(RED, ("red chair?", "striped zebra?")), (CAT, ("cat?",)), (NOTHING, ())],
)
def test_attributes_are_asked_for_where_there_are_any(record: PromptRecord, questions: tuple[str, ...]) -> None:
    assert questions_of(record) == questions


def probability_of_yes(expert: GitVqa, pixels: Tensor, question: str) -> float:
    """One image, one question, the whole network, softmax over the whole vocabulary; in float64 from the logits."""
    ids = [expert.tokenizer.cls_token_id, *expert.tokenizer(question, add_special_tokens=False)["input_ids"]]
    mean, std = torch.tensor([0.48145466, 0.4578275, 0.40821073]), torch.tensor([0.26862954, 0.26130258, 0.27577711])
    pixels = (pixels - mean.view(3, 1, 1)) / std.view(3, 1, 1)
    with torch.no_grad():
        logits = expert.model(input_ids=torch.tensor([ids]), pixel_values=pixels[None]).logits[0, -1]
    probabilities = logits.double().softmax(0)
    yes, no = (float(probabilities[vocabulary()[word]]) for word in ("yes", "no"))
    return yes / (yes + no)


def test_scores_are_those_of_one_question_at_a_time(tiny: Tiny) -> None:
    """Images with one to three questions of different lengths, in batches of three and two."""
    expert, pixels = tiny(batch_size=3), images(5)
    questions = [
        ("red chair?", "cat?"),
        ("dog?",),
        ("a long striped zebra?",),
        ("no?", "hot dog?", "a?"),
        ("cat?",),
    ]
    records = [PromptRecord("p", "color", attribute_nouns=tuple(text[:-1] for text in few)) for few in questions]
    expected = [
        sum(probability_of_yes(expert, image, text) for text in few) / len(few)
        for image, few in zip(pixels, questions, strict=True)
    ]
    scores = expert.score(pixels, records)
    torch.testing.assert_close(scores, torch.tensor(expected), rtol=0, atol=2e-6)
    assert scores.std() > 0.05, "else this shows nothing"


def test_an_image_is_encoded_once_for_all_its_questions(tiny: Tiny) -> None:
    expert, seen = tiny(), []
    with expert.model.git.image_encoder.register_forward_hook(lambda _, inputs, __: seen.append(len(inputs[0]))):
        expert.score(images(3), [RED] * 3)
    assert seen == [3]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_lower_precision_stays_near(tiny: Tiny, dtype: str) -> None:
    exact, coarse = (expert.score(images(4), [RED] * 4) for expert in (tiny(), tiny(dtype=dtype)))
    assert coarse.dtype == torch.float32
    torch.testing.assert_close(coarse, exact, rtol=0, atol=0.05)


@pytest.mark.parametrize("size", [(24, 24), (64, 64), (40, 56), (70, 50)])
def test_pictures_are_those_of_the_networks_processor(size: tuple[int, int]) -> None:
    """Of smooth pictures, up to rounding to 8 bits: resized by the short side, then the square in the middle."""
    waves = torch.stack(torch.meshgrid(*(torch.linspace(0, 3, side) for side in size), indexing="ij"))
    image = (torch.stack([waves[0].sin(), waves[1].cos(), waves.sum(0).sin()], -1) * 100 + 128).to(torch.uint8)
    processor = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    expected = processor(images=Image.fromarray(image.numpy()), return_tensors="pt").pixel_values
    pixels = normalise(fill_and_crop(image.permute(2, 0, 1)[None] / 255, 32), CLIP_MEAN, CLIP_STD)
    torch.testing.assert_close(pixels, expected, rtol=0, atol=1.1 / 255 / min(CLIP_STD))


def test_relations_and_counts_are_not_its_business_unless_as_released(tiny: Tiny) -> None:
    assert [tiny().applicable(record) for record in (RELATION, COUNT, RED, CAT, NOTHING)] == [
        *(False, False, True, True, False)
    ]
    faithful = tiny(faithful=True)
    records = [RELATION, RED, COUNT, NOTHING]
    assert all(map(faithful.applicable, records))
    scores = faithful.score(images(4), records)
    assert scores[[0, 2, 3]].tolist() == [0.0, 0.0, 1.0]
    assert scores[1] == tiny().score(images(4)[1:2], [RED])


def test_nothing_to_ask_about_is_1(tiny: Tiny) -> None:
    assert tiny().score(images(2), [NOTHING] * 2).tolist() == [1.0, 1.0]


def test_the_yaml_and_a_path_make_the_expert(tmp_path: Path) -> None:
    arguments = write(tmp_path)
    settings = ["experiment=bicot_lora", "rewards=vqa"]
    ensemble = build_rewards(compose([*settings, f"rewards.experts.vqa.path={arguments['path']}"]))
    assert ensemble.names == ("vqa",)
    assert isinstance(ensemble.sources[0].experts["vqa"], GitVqa)
    report = ensemble(images(3), records(3))
    assert report.applicable.all()
    assert report.total.isfinite().all()
    with pytest.raises(UserError, match=r"rewards\.experts\.vqa: path=.*no: no such directory"):
        build_rewards(compose([*settings, f"rewards.experts.vqa.path={tmp_path / 'no'}"]))


@pytest.mark.skipif("T2I_R1_PROMPTS" not in os.environ, reason="T2I_R1_PROMPTS does not name the released training set")
def test_released_prompts_are_asked_about_by_their_type(tiny: Tiny) -> None:
    """Colour, texture and shape prompts have attributes, the other objects are asked for by their nouns."""
    expert, kinds = tiny(), {True: 0, False: 0}
    for record in read_jsonl(os.environ["T2I_R1_PROMPTS"]):
        applies = expert.applicable(record)
        kinds[applies] += 1
        assert applies == (record.task_type not in ("spatial", "numeracy"))
        assert bool(record.attribute_nouns) == (record.task_type in ("color", "texture", "shape"))
        nouns = record.attribute_nouns or record.nouns
        assert questions_of(record) == tuple(noun + "?" for noun in nouns) != ()
    assert kinds == {True: 3856, False: 3367}


@pytest.mark.skipif(
    not {"T2I_R1_GIT", "T2I_R1_CATS"} <= set(os.environ),
    reason="T2I_R1_GIT (git-large-vqav2) and T2I_R1_CATS (COCO val2017 000000039769) name no files",
)
def test_published_values_of_two_cats() -> None:
    """The first logits after [CLS] alone, as transformers' conversion of the published weights was checked."""
    with Image.open(os.environ["T2I_R1_CATS"]) as image:
        width, height = image.size
        data = torch.frombuffer(bytearray(image.convert("RGB").tobytes()), dtype=torch.uint8)
    pixels = data.view(1, height, width, 3).permute(0, 3, 1, 2) / 255
    expert = GitVqa(os.environ["T2I_R1_GIT"])
    logits, _ = expert.answers(pixels, [[""]])
    torch.testing.assert_close(logits[0, 0, :3], torch.tensor([-0.7042, -0.7043, -0.7043]), rtol=0, atol=1e-2)
