"""What leaves the project: a PEFT adapter, or a whole checkpoint, both for plain transformers + peft.

Every function here fills a folder the caller made; the caller puts it in place once it is whole.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from src.policies.load import CheckpointError, check_janus_directory
from src.policies.lora import load_lora

ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")
# Of a base checkpoint everything is copied (tokenizer, processor, chat templates, generation config) but these.
WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".index.json")
WRITTEN_ANEW = ("config.json", "readme.md")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def base_of_adapter(adapter: Path) -> str | None:
    """The base checkpoint an adapter names.

    Raises:
        CheckpointError: if the folder holds no adapter or a damaged one.
    """
    for name in ADAPTER_FILES:
        if not (adapter / name).is_file():
            raise CheckpointError(f"adapter={adapter}: no {name} there; give a folder written by PEFT")
    config = adapter / "adapter_config.json"
    try:
        return json.loads(config.read_text(encoding="utf-8")).get("base_model_name_or_path")
    except (json.JSONDecodeError, UnicodeDecodeError, AttributeError) as error:
        raise CheckpointError(f"{config}: not valid JSON ({error}); the adapter is damaged") from None


def write_adapter(adapter: Path, base: Path, out: Path) -> None:
    """The adapter with its config naming `base` by absolute path, and a page on how to load it.

    The weights are loaded onto the base once, so that what is written is known to fit.

    Raises:
        CheckpointError, ValueError: for a base that cannot be loaded, an adapter that does not fit it.
    """
    load_lora(load_base(base), adapter, trainable=False)
    shutil.copyfile(adapter / "adapter_model.safetensors", out / "adapter_model.safetensors")
    config = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
    config["base_model_name_or_path"] = str(base.resolve())
    config["inference_mode"] = True
    (out / "adapter_config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    (out / "README.md").write_text(_adapter_page(base.resolve()), encoding="utf-8")


def write_merged(adapter: Path, base: Path, out: Path, dtype: str = "auto") -> None:
    """A whole checkpoint with the adapter merged into it.

    Each update is added in float32 and the sum cast once, layer by layer, so that a 7B base in bf16 needs no
    second copy. dtype: of the result; auto keeps the base's.
    """
    model = load_base(base)
    tuned = load_lora(model, adapter, trainable=False)
    merge_layers(tuned)
    _write_model(tuned.unload(), base, out, dtype)


def write_trained(weights: Mapping[str, Tensor], base: Path, out: Path, dtype: str = "auto") -> None:
    """A whole checkpoint with some of its weights replaced: full fine-tuning's.

    weights: by their names in the transformers model. dtype: of the result; auto keeps the base's.

    Raises:
        CheckpointError: if a name or shape does not fit the base.
    """
    model = load_base(base)
    own = dict(model.named_parameters())
    with torch.no_grad():
        for name, value in weights.items():
            if name not in own or own[name].shape != value.shape:
                found = tuple(own[name].shape) if name in own else "no such weight"
                raise CheckpointError(
                    f"{base}: trained weight {name} {tuple(value.shape)} does not fit the base ({found})"
                )
            own[name].copy_(value)
    _write_model(model, base, out, dtype)


def load_base(base: Path) -> Any:
    """The transformers model of a Janus directory in the dtype of its files.

    Raises:
        CheckpointError: if it cannot be loaded.
    """
    from transformers import JanusForConditionalGeneration

    folder = check_janus_directory(base)
    try:
        return JanusForConditionalGeneration.from_pretrained(
            folder, dtype="auto", local_files_only=True, tie_word_embeddings=False
        ).eval()
    except Exception as error:
        raise CheckpointError(f"{base}: cannot be loaded: {type(error).__name__}: {error}") from error


@torch.no_grad()
def merge_layers(model: nn.Module) -> None:
    """Add each LoRA layer's update to the weight below it, in float32, cast once."""
    layers: list[Any] = [layer for layer in model.modules() if hasattr(layer, "get_delta_weight")]
    for layer in layers:
        weight = layer.base_layer.weight
        total = weight.float()
        for name in layer.active_adapters:
            # lora_A and lora_B are float32 whatever the base is (PEFT raises them when it loads).
            total = total + layer.get_delta_weight(name).float()
        weight.copy_(total.to(weight.dtype))


def _write_model(model: Any, base: Path, out: Path, dtype: str) -> None:
    if dtype != "auto":
        model.to(DTYPES[dtype])
    model.save_pretrained(out)
    for source in base.iterdir():
        name = source.name.lower()
        if name.startswith(".") or name.endswith(WEIGHTS) or name in WRITTEN_ANEW:
            continue
        if source.is_dir():
            shutil.copytree(source, out / source.name, dirs_exist_ok=True)
        else:
            shutil.copyfile(source, out / source.name)
    (out / "README.md").write_text(_checkpoint_page(base.resolve()), encoding="utf-8")


def _adapter_page(base: Path) -> str:
    return f"""---
base_model: {base}
library_name: peft
tags: [lora, text-to-image, bicot-grpo]
---

A LoRA adapter trained with BiCoT-GRPO (arXiv 2505.00703) for the Janus checkpoint at
`{base}`. If that moved, write its new place into `adapter_config.json`.

```python
from peft import PeftModel
from transformers import JanusForConditionalGeneration

base = JanusForConditionalGeneration.from_pretrained({str(base)!r}, tie_word_embeddings=False)
model = PeftModel.from_pretrained(base, "path/to/this/folder")
```
"""


def _checkpoint_page(base: Path) -> str:
    return f"""---
base_model: {base}
library_name: transformers
tags: [text-to-image, bicot-grpo]
---

A Janus checkpoint trained with BiCoT-GRPO (arXiv 2505.00703) from the one at
`{base}`; tokenizer, processor and chat templates are the base's.

```python
from transformers import AutoProcessor, JanusForConditionalGeneration

model = JanusForConditionalGeneration.from_pretrained("path/to/this/folder")
processor = AutoProcessor.from_pretrained("path/to/this/folder")
```
"""
