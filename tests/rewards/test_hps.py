"""HPS: open_clip's checkpoint through transformers' CLIP, held to CLIP written out in float64."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch.nn import functional as F
from torchvision.transforms.functional import pil_to_tensor

from src.hub import WeightsNotFound
from src.rewards.experts.hps import HPS
from src.rewards.vision.clip_layout import VIT_H_14, clip_config, to_transformers
from src.rewards.vision.weights import WeightsMismatch
from src.values import PromptRecord
from tests.rewards.literal import clip_image, clip_text
from tests.rewards.tiny_experts import hps as tiny

MEAN, STD = (
    torch.tensor(v).view(3, 1, 1) for v in ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
)
LONG = "cat " * 30  # more than the context holds


@pytest.fixture(scope="module")
def arguments(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return tiny.write(tmp_path_factory.mktemp("hps"))


def test_image_embeddings_are_the_checkpoints(arguments: dict[str, Any]) -> None:
    pixels = torch.rand(4, 3, 8, 8)
    state = tiny.open_clip_state()
    expected = torch.stack([clip_image(state, (image - MEAN) / STD, heads=3) for image in pixels])
    found = HPS(**arguments).embed_images(pixels)
    torch.testing.assert_close(found.double(), F.normalize(expected, dim=1), rtol=0, atol=2e-6)


def test_text_embeddings_are_the_checkpoints(arguments: dict[str, Any]) -> None:
    """Texts of several lengths in one batch, one cut to the context: the end-of-text token stays."""
    prompts = ["a cat", "", "a red dog on a mat", LONG]
    expert, state = HPS(**arguments), tiny.open_clip_state()
    start, end = 516, 517
    ids = [[start, *expert.tokenizer.encode(text, add_special_tokens=False)[:14], end] for text in prompts]
    assert [len(row) for row in ids] == [4, 2, 13, 16]
    expected = torch.stack([clip_text(state, row, heads=2) for row in ids])
    torch.testing.assert_close(expert.embed_texts(prompts).double(), F.normalize(expected, dim=1), rtol=0, atol=2e-6)


def test_score_is_the_cosine_of_image_and_its_own_prompt(arguments: dict[str, Any]) -> None:
    expert, state = HPS(**arguments), tiny.open_clip_state()
    pixels, prompts = torch.rand(3, 3, 8, 8), ["a cat", "a dog", "a cat"]
    scores = expert.score(pixels, [PromptRecord(prompt) for prompt in prompts])
    for row, prompt in enumerate(prompts):
        image = clip_image(state, (pixels[row] - MEAN) / STD, heads=3)
        text = clip_text(state, [516, *expert.tokenizer.encode(prompt, add_special_tokens=False), 517], heads=2)
        assert scores[row].item() == pytest.approx(F.cosine_similarity(image, text, dim=0).item(), abs=2e-6)


def test_every_weight_of_the_released_model_is_mapped() -> None:
    """The real sizes, without memory: keys and shapes of ViT-H/14 become exactly those of transformers'."""
    from transformers import CLIPModel

    with torch.device("meta"):
        released = {key: torch.empty(shape) for key, shape in tiny.open_clip_shapes(VIT_H_14).items()}
        expected = {key: value.shape for key, value in CLIPModel(clip_config(VIT_H_14)).state_dict().items()}
    assert {key: value.shape for key, value in to_transformers(released).items()} == expected
    assert sum(value.numel() for value in released.values()) == 986_109_441


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda state: state.pop("visual.proj"), r"1 missing: visual_projection\.weight"),
        (lambda state: state.pop("transformer.resblocks.1.attn.in_proj_bias"), r"3 missing: .*k_proj\.bias"),
        (lambda state: state.update({"visual.extra": torch.zeros(1)}), r"1 left over: visual\.extra"),
        (
            lambda state: state.update({"visual.class_embedding": torch.zeros(25)}),
            r"1 of another shape: vision_model\.embeddings\.class_embedding \(25,\) instead of \(24,\)",
        ),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused(
    arguments: dict[str, Any], tmp_path: Path, change: Any, told: str
) -> None:
    state = tiny.open_clip_state()
    change(state)
    torch.save({"state_dict": state}, tmp_path / "other.pt")
    with pytest.raises(WeightsMismatch, match=rf"other\.pt: these weights do not fit \({told}"):
        HPS(**arguments | {"path": tmp_path / "other.pt"})


def test_other_files_are_refused(arguments: dict[str, Any], tmp_path: Path) -> None:
    torch.save({"model": tiny.open_clip_state()}, tmp_path / "other.pt")
    with pytest.raises(WeightsMismatch, match=r"other\.pt: no 'state_dict' in it"):
        HPS(**arguments | {"path": tmp_path / "other.pt"})
    with pytest.raises(WeightsNotFound, match=r"path=.*gone\.pt: no such file; .* HPS_v2\.1_compressed\.pt"):
        HPS(**arguments | {"path": tmp_path / "gone.pt"})
    with pytest.raises(WeightsNotFound, match=r"tokenizer=.*gone: no such directory"):
        HPS(**arguments | {"tokenizer": tmp_path / "gone"})
    with pytest.raises(ValueError, match=r"tokenizer=.*: its end-of-text token is 517, the checkpoint's is 518"):
        HPS(**arguments | {"sizes": replace(tiny.SIZES, vocabulary=519)})
    with pytest.raises(WeightsMismatch, match="1 of another shape"):
        HPS(**arguments | {"sizes": replace(tiny.SIZES, context_length=17)})


@pytest.mark.skipif("HPS_V2_CHECKPOINT" not in os.environ, reason="needs HPS_v2_compressed.pt and demo_image.jpg")
def test_the_published_demo_scores_as_reported() -> None:
    """github.com/tgxs002/HPSv2 issue 27: v2.0 gives its demo image 0.2876 (in half precision).

    HPS_V2_CHECKPOINT names HPS_v2_compressed.pt (v2.0), HPS_DEMO_IMAGE hpsv2/assets/demo_image.jpg, HPS_TOKENIZER
    a directory with CLIP's tokenizer.
    """
    image = pil_to_tensor(Image.open(os.environ["HPS_DEMO_IMAGE"]).convert("RGB"))[None] / 255
    expert = HPS(path=os.environ["HPS_V2_CHECKPOINT"], tokenizer=os.environ["HPS_TOKENIZER"])
    score = expert.score(image, [PromptRecord("A cat with two horns on its head")])
    assert score.item() == pytest.approx(0.2876, abs=2e-3)
