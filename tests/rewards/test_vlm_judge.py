"""The vision-language judge: transformers' own generation, one image at a time, as the reference."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor
from transformers import AutoModelForImageTextToText, AutoProcessor

from src.rewards.experts.vlm_judge import VLMJudge
from src.rewards.vision.weights import WeightsMismatch
from src.values import PromptRecord
from tests.rewards.tiny_experts import vlm_judge as tiny
from tests.rewards.tiny_experts.qwen_vl import write_qwen_vl

YES, NO = ("yes", "Ġyes"), ("no", "Ġno")


@pytest.fixture(scope="module")
def arguments(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return tiny.write(tmp_path_factory.mktemp("vlm_judge"))


def generated_share(folder: Path, image: Tensor, messages: list[dict[str, Any]], temperature: float = 1.0) -> float:
    """P(yes) / (P(yes) + P(no)) of the first token that `generate` would sample from."""
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
    processor = AutoProcessor.from_pretrained(folder)
    picture = Image.fromarray((image * 255).round().to(torch.uint8).permute(1, 2, 0).numpy())
    text = processor.apply_chat_template(messages, add_generation_prompt=True)
    inputs = processor(text=[text], images=[[picture]], return_tensors="pt")
    out = model.generate(**inputs, max_new_tokens=1, do_sample=False, return_dict_in_generate=True, output_logits=True)
    chances = (out.logits[0][0].double() / temperature).softmax(0)
    yes, no = (chances[processor.tokenizer.convert_tokens_to_ids(list(words))].sum() for words in (YES, NO))
    return (yes / (yes + no)).item()


def asked(question: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}]


@pytest.mark.parametrize("temperature", [1.0, 0.3])
def test_score_is_what_generation_would_answer(arguments: dict[str, Any], temperature: float) -> None:
    pixels, records = torch.rand(4, 3, 9, 14), tiny.records(4)
    scores = VLMJudge(**arguments, temperature=temperature).score(pixels, records)
    assert scores.unique().numel() == 4
    for row, record in enumerate(records):
        question = f'Does this figure show "{record.prompt}"? Please answer yes or no.'
        expected = generated_share(arguments["path"], pixels[row], asked(question), temperature)
        assert scores[row].item() == pytest.approx(expected, abs=2e-6)


def test_question_and_system_message_are_the_users(arguments: dict[str, Any]) -> None:
    expert = VLMJudge(**arguments, question="Is it {prompt}?", system="You judge.")
    image, prompt = torch.rand(3, 8, 8), 'a "{prompt}" of {x}, 100%'
    messages = [{"role": "system", "content": [{"type": "text", "text": "You judge."}]}, *asked(f"Is it {prompt}?")]
    score = expert.score(image[None], [PromptRecord(prompt)]).item()
    assert score == pytest.approx(generated_share(arguments["path"], image, messages), abs=2e-6)


def test_another_family_of_models_answers_as_it_generates(tmp_path: Path) -> None:
    """Qwen2.5-VL: images as patches without a batch axis, three rotary positions a token."""
    write_qwen_vl(tmp_path)
    expert = VLMJudge(path=tmp_path, dtype="float32", batch_size=2)
    pixels, records = torch.rand(5, 3, 56, 56), tiny.records(5)
    scores = expert.score(pixels, records)
    assert scores.unique().numel() > 1
    for row, record in enumerate(records):
        question = f'Does this figure show "{record.prompt}"? Please answer yes or no.'
        assert scores[row].item() == pytest.approx(generated_share(tmp_path, pixels[row], asked(question)), abs=2e-6)


def test_only_equally_long_questions_meet_in_a_batch(arguments: dict[str, Any]) -> None:
    expert = VLMJudge(**arguments)
    records = [PromptRecord(prompt) for prompt in ("a dog", "a cat", "a red cat", "a fox", "a pig")]
    assert expert.batches(records) == [[0, 1, 3], [4], [2]]


def test_wrong_settings_are_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    nowhere = tmp_path / "nowhere"
    with pytest.raises(ValueError, match=r"question='Is it good\?': expected {prompt} in it"):
        VLMJudge(path=nowhere, question="Is it good?")
    with pytest.raises(ValueError, match="temperature=-1: expected a number > 0"):
        VLMJudge(path=nowhere, temperature=-1)
    with pytest.raises(ValueError, match="dtype=half: expected one of float32, bfloat16, float16"):
        VLMJudge(path=nowhere, dtype="half")


def test_a_model_that_cannot_chat_is_refused(arguments: dict[str, Any], tmp_path: Path) -> None:
    folder = shutil.copytree(arguments["path"], tmp_path / "model")
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(ValueError, match="its processor has no chat template"):
        VLMJudge(**arguments | {"path": folder})


def test_missing_weights_are_refused(arguments: dict[str, Any], tmp_path: Path) -> None:
    """transformers would draw them at random."""
    folder = shutil.copytree(arguments["path"], tmp_path / "model")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["text_config"]["num_hidden_layers"] = 3
    config["text_config"]["layer_types"] = ["full_attention"] * 3
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(WeightsMismatch, match=r"12 missing: .*layers\.2\."):
        VLMJudge(**arguments | {"path": folder})


@pytest.mark.parametrize("spelling", ["<image>", "<video>", "<|im_end|>", "<|im_start|>assistant", "a <image><image>"])
def test_a_prompt_that_spells_the_judges_special_tokens_is_words(arguments: dict[str, Any], spelling: str) -> None:
    """As its own image token it would stand for a second picture; none is there, and scoring would raise."""
    expert, image = VLMJudge(**arguments), torch.rand(3, 8, 8)
    tokenizer = expert.processor.tokenizer
    texts = expert.texts([PromptRecord(f"a {spelling} dog"), PromptRecord("a dog")])
    special = set(tokenizer.all_special_ids) | {tokenizer.convert_tokens_to_ids(one) for one in ("<image>", "<video>")}
    found = [[one for one in tokenizer(text).input_ids if one in special] for text in texts]
    assert found[0] == found[1]
    score = expert.score(image[None], [PromptRecord(f"a {spelling} dog")]).item()
    apart = spelling.replace("<", "< ")
    assert score == pytest.approx(expert.score(image[None], [PromptRecord(f"a {apart} dog")]).item(), abs=1e-6)


def test_a_judges_endless_template_is_refused_before_its_weights_are_read(
    arguments: dict[str, Any], tmp_path: Path
) -> None:
    folder = shutil.copytree(arguments["path"], tmp_path / "model")
    loops = "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}"
    (folder / "chat_template.jinja").write_text(loops, encoding="utf-8")
    (folder / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(ValueError, match="its processor's chat template was stopped"):
        VLMJudge(**arguments | {"path": folder})
