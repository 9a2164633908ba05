"""CLIPScore: torchmetrics' own figures, image by image."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics.multimodal import CLIPScore
from transformers import CLIPModel, CLIPProcessor

from src.rewards.experts.clip_score import ClipScore
from src.values import PromptRecord
from tests.rewards.tiny_experts import clip_score as tiny


@pytest.fixture(scope="module")
def arguments(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return tiny.write(tmp_path_factory.mktemp("clip_score"))


def cosine(arguments: dict[str, Any], image: Tensor, prompt: str) -> float:
    """100 * cosine of one 8-bit image and one prompt, by transformers alone."""
    model, processor = (kind.from_pretrained(arguments["path"]) for kind in (CLIPModel, CLIPProcessor))
    inputs = processor(text=prompt, images=image, return_tensors="pt", truncation=True, max_length=16)
    with torch.no_grad():
        out = model(**inputs)
    return 100 * F.cosine_similarity(out.image_embeds, out.text_embeds).item()


def test_score_is_torchmetrics_clip_score_of_each_pair(arguments: dict[str, Any]) -> None:
    expert = ClipScore(**arguments)
    pixels, records = torch.rand(7, 3, 12, 9), tiny.records(7)
    scores = expert.score(pixels, records)
    for row, record in enumerate(records):
        metric = CLIPScore(lambda: (expert.model, expert.processor))
        metric.update((pixels[row] * 255).round().to(torch.uint8), record.prompt)
        # 100 times a cosine: rounding is one of that scale, as in tests/rewards/test_contract.py.
        assert scores[row].item() == pytest.approx(metric.compute().item(), abs=1e-4)


@pytest.mark.parametrize("prompt", ["a cat", "a dog on a mat", "cat " * 40])
def test_score_is_transformers_cosine_also_for_prompts_beyond_the_context(
    arguments: dict[str, Any], prompt: str
) -> None:
    image = torch.randint(256, (3, 8, 8), dtype=torch.uint8)
    score = ClipScore(**arguments).score(image[None] / 255, [PromptRecord(prompt)]).item()
    assert score == pytest.approx(max(cosine(arguments, image, prompt), 0.0), abs=1e-4)


def test_a_negative_cosine_scores_nothing(arguments: dict[str, Any]) -> None:
    images = torch.randint(256, (40, 3, 8, 8), dtype=torch.uint8)
    prompts = [record.prompt for record in tiny.records(40)]
    raw = [cosine(arguments, image, prompt) for image, prompt in zip(images, prompts, strict=True)]
    assert min(raw) < -1
    scores = ClipScore(**arguments).score(images / 255, [PromptRecord(prompt) for prompt in prompts])
    assert scores[raw.index(min(raw))] == 0.0


@pytest.mark.skipif("CLIP_VIT_BASE_16" not in os.environ, reason="needs a directory of openai/clip-vit-base-patch16")
def test_the_published_example_scores_as_published() -> None:
    """The example in torchmetrics' documentation of clip_score: 24.4260. CLIP_VIT_BASE_16 names the directory."""
    image = torch.randint(255, (3, 224, 224), generator=torch.Generator().manual_seed(42))
    score = ClipScore(path=os.environ["CLIP_VIT_BASE_16"]).score(image[None] / 255, [PromptRecord("a photo of a cat")])
    assert score.item() == pytest.approx(24.4260, abs=5e-3)


def test_embeddings_are_transformers_image_features_batch_by_batch(arguments: dict[str, Any]) -> None:
    images = torch.randint(256, (5, 3, 8, 8), dtype=torch.uint8)
    model, processor = (kind.from_pretrained(arguments["path"]) for kind in (CLIPModel, CLIPProcessor))
    with torch.no_grad():
        inputs = processor.image_processor(images=list(images), return_tensors="pt")
        wanted = model.get_image_features(**inputs).pooler_output
    found = ClipScore(**{**arguments, "batch_size": 2}).embed(images / 255)
    torch.testing.assert_close(found, wanted)
