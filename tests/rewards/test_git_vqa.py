"""The questioner: which questions it asks, and its answers against the network called on its own."""

from __future__ import annotations

import os
from functools import cache
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from src.data.jsonl import read_jsonl
from src.rewards.git_vqa import GitVqa, questions_of
from src.values import ObjectCount, PromptRecord, SpatialRelation
from tests.rewards.tiny import WORDS, git_directory, vocabulary

RELATION = PromptRecord("p", "spatial", ("cat", "dog"), spatial=SpatialRelation("cat", "dog", "near"))
COUNT = PromptRecord("p", "numeracy", ("cat",), counts=(ObjectCount("cat", 2),))
RED = PromptRecord("p", "color", ("chair", "zebra"), ("red chair", "striped zebra"))
CAT = PromptRecord("p", "object", ("cat",))
NOTHING = PromptRecord("p", "non")


@cache
def tiny(**settings: Any) -> GitVqa:
    return GitVqa(git_directory(), **settings)


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
    ids = [expert._tokenizer.cls_token_id, *expert._tokenizer(question, add_special_tokens=False)["input_ids"]]
    mean, std = torch.tensor([0.48145466, 0.4578275, 0.40821073]), torch.tensor([0.26862954, 0.26130258, 0.27577711])
    pixels = (pixels - mean.view(3, 1, 1)) / std.view(3, 1, 1)
    with torch.no_grad():
        logits = expert.network(input_ids=torch.tensor([ids]), pixel_values=pixels[None]).logits[0, -1]
    probabilities = logits.double().softmax(0)
    yes, no = (float(probabilities[vocabulary()[word]]) for word in ("yes", "no"))
    return yes / (yes + no)


def test_scores_are_those_of_one_question_at_a_time() -> None:
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


def test_an_image_is_encoded_once_for_all_its_questions() -> None:
    expert, seen = tiny(), []
    with expert.network.git.image_encoder.register_forward_hook(lambda _, inputs, __: seen.append(len(inputs[0]))):
        expert.score(images(3), [RED] * 3)
    assert seen == [3]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_lower_precision_stays_near(dtype: str) -> None:
    exact, coarse = (expert.score(images(4), [RED] * 4) for expert in (tiny(), tiny(dtype=dtype)))
    assert coarse.dtype == torch.float32
    torch.testing.assert_close(coarse, exact, rtol=0, atol=0.05)


def test_pictures_of_other_sizes_are_brought_to_the_networks() -> None:
    expert = tiny()
    assert expert.score(images(2, side=24), [CAT] * 2).shape == (2,)
    wide = torch.rand(1, 3, 32, 48)
    assert torch.equal(expert.score(wide, [CAT]), expert.score(wide[..., 8:40], [CAT]))


def test_relations_and_counts_are_not_its_business_unless_as_released() -> None:
    assert [tiny().applicable(record) for record in (RELATION, COUNT, RED, CAT, NOTHING)] == [False] * 2 + [True] * 3
    faithful = tiny(faithful=True)
    records = [RELATION, RED, COUNT, NOTHING]
    assert all(map(faithful.applicable, records))
    scores = faithful.score(images(4), records)
    assert scores[[0, 2, 3]].tolist() == [0.0, 0.0, 1.0]
    assert scores[1] == tiny().score(images(4)[1:2], [RED])


def test_nothing_to_ask_about_is_1() -> None:
    assert tiny().score(images(2), [NOTHING] * 2).tolist() == [1.0, 1.0]


def test_a_wrong_batch_size_is_told_before_any_weight_is_read() -> None:
    with pytest.raises(ValueError, match=r"vqa\.batch_size=0: expected a whole number >= 1"):
        GitVqa("nowhere", batch_size=0)


def test_yes_and_no_are_words_of_the_vocabulary() -> None:
    assert {"yes", "no"} <= set(WORDS)
    assert (tiny()._yes, tiny()._no) == (vocabulary()["yes"], vocabulary()["no"])


@pytest.mark.skipif("T2I_R1_PROMPTS" not in os.environ, reason="T2I_R1_PROMPTS does not name the released training set")
def test_released_prompts_are_asked_about_by_their_type() -> None:
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
    torch.testing.assert_close(logits[0, 0, :3], torch.tensor([-0.7042, -0.7043, -0.7043]), rtol=0, atol=5e-3)
    yes, no = (expert.ask(pixels, [[question]]) for question in ("cat?", "elephant?"))
    assert yes > no
