"""The questioner on a tiny GIT directory."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import GitConfig, GitForCausalLM

from src.rewards.experts.git_vqa import GitVqa
from src.values import PromptRecord
from tests.rewards.tiny_experts.bert import SIZE, bert_tokenizer

EXPERT, SIDE = GitVqa, 24


def records(count: int) -> list[PromptRecord]:
    """Prompts with one to three questions."""
    nouns = ("red dog", "blue chair", "cat")
    return [PromptRecord("some objects", "color", nouns[: i % 3 + 1]) for i in range(count)]


def write(folder: Path) -> dict[str, object]:
    """A GIT whose answers differ between pictures and questions."""
    torch.manual_seed(12)
    model = GitForCausalLM(
        GitConfig(
            vision_config={
                "image_size": 32,
                "patch_size": 16,
                "hidden_size": 16,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "intermediate_size": 16,
            },
            vocab_size=SIZE,
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=16,
            max_position_embeddings=64,
            initializer_range=0.5,
        )
    )
    model.save_pretrained(folder)
    bert_tokenizer().save_pretrained(folder)
    return {"path": folder, "batch_size": 5}
