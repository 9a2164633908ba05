"""A prompt or noun that spells a special token of an expert's tokenizer is words to that expert."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from src.values import PromptRecord
from tests.rewards.tiny_experts import clip_score, detector, hps, orm, vqa


@pytest.mark.parametrize(
    ("tiny", "spelling"), [(orm, "<|im_end|>"), (hps, "<|endoftext|>"), (clip_score, "<|endoftext|>")]
)
def test_a_prompt_that_spells_a_special_token_scores_as_words(tiny: Any, spelling: str, tmp_path: Path) -> None:
    """CLIP reads a text at its end-of-text token: what stood behind a spelled one would not count."""
    expert = tiny.EXPERT(**tiny.write(tmp_path))
    side = tiny.SIDE if isinstance(tiny.SIDE, int) else 12
    pixels = torch.rand(1, 3, side, side)
    apart = spelling.replace("<", "< ")
    prompts = [f"a {spelling} dog", f"a {apart} dog", f"a {spelling} cat"]
    spelled, words, other = (expert.score(pixels, [PromptRecord(prompt)]) for prompt in prompts)
    assert torch.equal(spelled, words)
    assert not torch.equal(spelled, other)


def test_a_noun_that_spells_a_special_token_is_asked_for_as_words(tmp_path: Path) -> None:
    expert = vqa.EXPERT(**vqa.write(tmp_path))
    ids, _, _ = expert._tokens([["[SEP] dog?", "[ SEP] dog?"]])
    assert ids[0].tolist() == ids[1].tolist()
    assert expert.tokenizer.sep_token_id not in ids


def test_a_noun_that_spells_a_special_token_is_looked_for_as_words(tmp_path: Path) -> None:
    expert = detector.EXPERT(**detector.write(tmp_path))
    found, apart = (expert.caption(PromptRecord("a dog", nouns=(noun, "dog"))) for noun in ("[SEP] dog", "[ SEP] dog"))
    assert found.ids == apart.ids
    assert found.ids.count(expert.tokenizer.sep_token_id) == 1
