"""The shipped checkpoint is an ordinary Janus directory, complete, small, crisp, and reads its world's words."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, JanusForConditionalGeneration, JanusProcessor

from src.policies.contexts import encode_image_context, encode_plan_context
from src.shapes.grammar import format_plan, parse_plan
from src.shapes.pretrain import DEFAULT_OUT
from src.shapes.requirements import arrange
from src.shapes.splits import SPLITS, split_prompts
from src.shapes.tokens import build_tokenizer, image_tokens, tokens_to_pixels
from src.shapes.vq import crispness, odd_tokens
from src.shapes.wordings import forms
from src.shapes.worlds import SMALL


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(DEFAULT_OUT)


@pytest.fixture(scope="module")
def model() -> JanusForConditionalGeneration:
    return JanusForConditionalGeneration.from_pretrained(DEFAULT_OUT).eval()


def test_it_is_at_most_eight_megabytes() -> None:
    assert sum(path.stat().st_size for path in DEFAULT_OUT.rglob("*") if path.is_file()) <= 8_000_000


def test_it_holds_no_path_of_the_machine_that_made_it() -> None:
    for path in DEFAULT_OUT.rglob("*.json"):
        assert '"/' not in path.read_text("utf-8"), path.name


def test_every_weight_is_loaded_and_float32() -> None:
    model, info = JanusForConditionalGeneration.from_pretrained(DEFAULT_OUT, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert not info["mismatched_keys"]
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert model.lm_head.weight is not model.get_input_embeddings().weight
    assert not torch.equal(model.lm_head.weight, model.get_input_embeddings().weight)


def test_special_tokens_are_those_of_janus(tokenizer: Any, model: JanusForConditionalGeneration) -> None:
    assert tokenizer.bos_token == "<｜begin▁of▁sentence｜>"
    assert tokenizer.eos_token == "<｜end▁of▁sentence｜>"
    assert tokenizer.pad_token == "<｜▁pad▁｜>"
    assert (tokenizer.boi_token, tokenizer.eoi_token) == ("<begin_of_image>", "<end_of_image>")
    assert tokenizer.image_token == "<image_placeholder>"
    settings = model.generation_config
    ids = (settings.bos_token_id, settings.eos_token_id, settings.pad_token_id)
    assert ids == (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)
    assert settings.generation_kwargs["boi_token_id"] == tokenizer.convert_tokens_to_ids("<begin_of_image>")
    assert model.config.image_token_id == tokenizer.convert_tokens_to_ids("<image_placeholder>")


def test_all_words_of_all_prompts_and_plans_are_known(tokenizer: Any) -> None:
    rng = random.Random(0)
    texts = [text for form in forms().values() for params in form.combinations() for text in form.wordings(params)]
    texts += [
        format_plan(arrange(reading, rng))
        for split in SPLITS
        for prompt in split_prompts(split)
        for reading in (prompt.requirement(), prompt.misreading())
    ]
    ids = {token for row in tokenizer(texts, add_special_tokens=False)["input_ids"] for token in row}
    assert tokenizer.unk_token_id not in ids
    assert ids.isdisjoint(tokenizer.all_special_ids)


def test_plans_survive_encoding_and_decoding(tokenizer: Any) -> None:
    rng = random.Random(1)
    for prompt in split_prompts("test"):
        plan = format_plan(arrange(prompt.requirement(), rng))
        ids = tokenizer(plan, add_special_tokens=False)["input_ids"]
        assert len(ids) == 3 * prompt.requirement().total <= 23
        decoded = tokenizer.decode([*ids, tokenizer.eos_token_id, tokenizer.pad_token_id], skip_special_tokens=True)
        assert decoded == plan
        assert parse_plan(decoded)


def test_places_are_single_tokens_with_and_without_separator(tokenizer: Any) -> None:
    for place in SMALL.places:
        for text in (place, place + ";"):
            assert tokenizer.convert_ids_to_tokens(tokenizer(text)["input_ids"]) == [text]


def test_what_is_unknown_becomes_the_unknown_token_and_case_is_folded(tokenizer: Any) -> None:
    tokens = tokenizer.convert_ids_to_tokens(tokenizer("A purple CIRCLE, top-left; 7")["input_ids"])
    unknown = tokenizer.unk_token
    assert tokens == ["a", unknown, "circle", ",", "top-left;", unknown]


def test_contexts_of_the_two_levels(tokenizer: Any) -> None:
    plan = encode_plan_context(tokenizer, ["a red circle", "two red circles and one more"])
    assert tokenizer.convert_ids_to_tokens(plan.ids[0]) == [
        *["<｜▁pad▁｜>"] * 3,
        *["<｜begin▁of▁sentence｜>", "a", "red", "circle", "<|Assistant|>"],
    ]
    begin = tokenizer.convert_tokens_to_ids(tokenizer.boi_token)
    image = encode_image_context(tokenizer, ["a red circle"], ["red circle top-left"], begin)
    assert tokenizer.convert_ids_to_tokens(image.ids[0]) == [
        *["<｜begin▁of▁sentence｜>", "a", "red", "circle", "."],
        *["red", "circle", "top-left", "<begin_of_image>"],
    ]


def test_the_processor_prepares_text_and_images() -> None:
    processor = JanusProcessor.from_pretrained(DEFAULT_OUT)
    inputs = processor(text=["a red circle"], generation_mode="image", return_tensors="pt")
    assert processor.tokenizer.convert_ids_to_tokens(inputs["input_ids"][0])[-1] == "<begin_of_image>"
    white = torch.full((3, 24, 24), 255, dtype=torch.uint8)
    pixels = processor.image_processor(white, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(pixels, torch.ones(1, 3, 24, 24))


def test_transformers_own_generation_draws_a_picture(tokenizer: Any, model: JanusForConditionalGeneration) -> None:
    text = tokenizer.bos_token + "a red circle. red circle center" + tokenizer.boi_token
    inputs = tokenizer([text, text], return_tensors="pt", add_special_tokens=False)
    tokens = model.generate(
        inputs["input_ids"], inputs["attention_mask"], generation_mode="image", guidance_scale=1.5, do_sample=True
    )
    assert tokens.shape == (2, image_tokens())
    assert model.decode_image_tokens(tokens).shape == (2, 24, 24, 3)


def test_drawings_stay_the_same_through_encoder_and_decoder(model: JanusForConditionalGeneration) -> None:
    assert crispness(model.model.vqmodel, 1000, torch.Generator().manual_seed(12345)) >= 0.98


def test_odd_grids_of_tokens_decode_to_their_patches(model: JanusForConditionalGeneration) -> None:
    tokens = odd_tokens(200, torch.Generator().manual_seed(54321))
    with torch.no_grad():
        pixels = ((model.decode_image_tokens(tokens) + 1) / 2).clamp(0, 1).permute(0, 3, 1, 2)
    assert (pixels - tokens_to_pixels(tokens)).abs().mean() < 0.03


def test_the_recipe_says_what_was_measured() -> None:
    recipe = json.loads((DEFAULT_OUT / "RECIPE.json").read_text("utf-8"))
    assert recipe["vq_crispness"] >= 0.98
    assert recipe["test"]["prompts"] >= 512
    assert 0.30 <= recipe["test"]["all_correct"] <= 0.45
    assert recipe["test"]["plans_ended"] >= 0.99


def test_the_shipped_tokenizer_is_what_the_code_makes(tokenizer: Any) -> None:
    assert tokenizer.get_vocab() == build_tokenizer().get_vocab()
