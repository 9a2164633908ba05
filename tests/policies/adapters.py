"""Adapters of every kind that PEFT can write, made by plain PEFT on the tiny Janus, without this project's code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from tests.policies.tiny import tiny_janus

OURS = r".*language_model\.layers\.\d+\.(self_attn|mlp)\.(q|k|v|o|gate|up|down)_proj"

# What `LoraConfig` is made with. Honoured: all paths give what PEFT's own forward gives.
HONOURED: dict[str, dict[str, Any]] = {
    "plain": {},
    "some projections": {"target_modules": r".*language_model.*\.(q_proj|down_proj)"},
    "rslora": {"use_rslora": True},
    "rank and alpha patterns": {"rank_pattern": {"q_proj": 2, "gate_proj": 6}, "alpha_pattern": {"v_proj": 3}},
    "one layer": {"target_modules": ["gate_proj", "o_proj"], "layers_to_transform": 1, "layers_pattern": "layers"},
    "excluded": {"target_modules": r".*language_model.*_proj", "exclude_modules": r".*(k_proj|layers\.0\..*down_proj)"},
    "gaussian": {"init_lora_weights": "gaussian"},
    "drawn": {"init_lora_weights": False},
    "orthogonal": {"init_lora_weights": "orthogonal"},
    "causal": {"task_type": "CAUSAL_LM"},
    "dropout": {"lora_dropout": 0.4},
    "negative": {"lora_alpha": -6},
    # Names that the vision tower has, too: what is there takes part in nothing that paints.
    "vision tower too": {"target_modules": ["q_proj", "v_proj", "fc1"], "exclude_modules": r".*generation_aligner.*"},
}

# Refused by name: the setting or the module that the message names.
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "all-linear": ({"target_modules": "all-linear"}, "model.generation_aligner.fc1"),
    "generation head": (
        {"target_modules": r".*generation_head.*(proj_out|vision_head)"},
        "model.generation_head.proj_out",
    ),
    "aligner": ({"target_modules": r".*generation_aligner.*fc1"}, "model.generation_aligner.fc1"),
    "lm_head": ({"target_modules": ["q_proj", "lm_head"]}, "lm_head"),
    "embeddings": ({"target_modules": r".*embed_tokens"}, "model.language_model.embed_tokens"),
    "vq": ({"target_modules": r".*(vqmodel.*conv_in|language_model.*q_proj)"}, "model.vqmodel"),
    "dora": ({"use_dora": True}, "use_dora"),
    "bias of B": ({"lora_bias": True}, "lora_bias"),
    "biases": ({"bias": "all"}, 'bias="all"'),
    "biases of its layers": ({"bias": "lora_only"}, 'bias="lora_only"'),
    "alora": ({"alora_invocation_tokens": [8, 9], "task_type": "CAUSAL_LM"}, "alora_invocation_tokens"),
    "modules to save": ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
    "tokens": ({"trainable_token_indices": [3, 4]}, "trainable_token_indices"),
    "parameters": ({"target_modules": [], "target_parameters": ["q_proj.weight"]}, "target_parameters"),
    "replicated layers": ({"layer_replication": [[0, 2], [1, 2]]}, "layer_replication"),
    "no effect": ({"lora_alpha": 0}, "lora_alpha"),
    "no effect in part": ({"alpha_pattern": {"q_proj": 0}}, "alpha_pattern"),
}


def write_adapter(folder: Path, settings: dict[str, Any], scale: float = 0.15, seed: int = 3) -> Path:
    """An adapter folder as ``save_pretrained`` writes it; all its tensors are drawn, so that each does something."""
    model = peft_model(settings)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if any(part in name for part in ("lora_B", "lora_embedding_B", "modules_to_save", "token_adapter")):
                parameter.add_(scale * torch.randn(parameter.shape, generator=generator))
    model.save_pretrained(str(folder), save_embedding_layers=False)
    return folder


def peft_model(settings: dict[str, Any]) -> Any:
    """A fresh PEFT model on the tiny Janus."""
    from peft import LoraConfig, get_peft_model

    chosen = {"r": 4, "lora_alpha": 8, "target_modules": OURS} | settings
    return get_peft_model(tiny_janus(), LoraConfig(**chosen))


def plain_peft(folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    """The adapter on the tiny Janus as a user of plain PEFT loads it, in eval mode."""
    from peft import PeftModel

    return PeftModel.from_pretrained(tiny_janus(dtype=dtype), str(folder)).eval()


def change_config(folder: Path, **values: Any) -> Path:
    """The adapter's config with other values; PEFT itself would not write some of them."""
    file = folder / "adapter_config.json"
    config = json.loads(file.read_text(encoding="utf-8")) | values
    file.write_text(json.dumps(config), encoding="utf-8")
    return folder
