"""Exports a PEFT adapter or a whole checkpoint, both for plain transformers + peft.

Every function here fills a folder made by the caller, who moves it into place when it is complete.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from src.policies.agreement import check_merged, fixed_logps
from src.policies.checkpoint import ORIGINAL, TRANSFORMERS, JanusCheckpoint, layout_of, open_checkpoint
from src.policies.lora import load_lora
from src.policies.original_config import has_presets, write_config
from src.policies.original_layout import CODES_USED, has_no_counterpart, to_original
from src.policies.processor_files import write_original_processor, write_transformers_processor
from src.policies.weight_files import CheckpointError, could_be_path, mapped_tensors, read_json

ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")
# Everything of a base checkpoint is copied (tokenizer, processor, chat templates, generation config) except these.
WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".index.json")
WRITTEN_ANEW = ("config.json", "readme.md")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
# Files without meaning in the other layout, or with another form there.
ONE_LAYOUT_ONLY = ("generation_config.json", "preprocessor_config.json", "processor_config.json")
CODES_USED_SLOTS = 65536  # ``VectorQuantizer`` of the released code


def base_of_adapter(adapter: Path) -> str | None:
    """The base checkpoint an adapter names.

    Raises:
        CheckpointError: if the folder has no adapter or a damaged one.
    """
    for name in ADAPTER_FILES:
        if not (adapter / name).is_file():
            raise CheckpointError(f"adapter={adapter}: no {name} there; give a folder written by PEFT")
    config = adapter / "adapter_config.json"
    try:
        named = json.loads(config.read_text(encoding="utf-8")).get("base_model_name_or_path")
    except (json.JSONDecodeError, UnicodeDecodeError, AttributeError) as error:
        raise CheckpointError(f"{config}: not valid JSON ({error}); the adapter is damaged") from None
    if named is not None and not (isinstance(named, str) and could_be_path(named)):
        raise CheckpointError(f"{config}: base_model_name_or_path is neither a path nor a name; the adapter is damaged")
    return named


@dataclass(frozen=True, slots=True)
class PageNames:
    """The names used on the page that explains loading.

    base: a name on the hub; None: the base's absolute path. folder: the written folder, as a relative path.
    """

    base: str | None = None
    folder: str = "."


def write_adapter(adapter: Path, base: Path, out: Path, names: PageNames = PageNames()) -> None:
    """The adapter, with a config that names the base, and a page that explains loading it.

    The weights are loaded onto the base once, to check that they fit.

    Raises:
        CheckpointError, ValueError: for a base that cannot be loaded, an adapter that does not fit it.
    """
    load_lora(load_base(base), adapter, trainable=False, anywhere=True)
    shutil.copyfile(adapter / "adapter_model.safetensors", out / "adapter_model.safetensors")
    config = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
    config["base_model_name_or_path"] = names.base or str(base.resolve())
    config["inference_mode"] = True
    (out / "adapter_config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    page = _adapter_page(names.base or str(base.resolve()), layout_of(base) == ORIGINAL, names.folder)
    (out / "README.md").write_text(page, encoding="utf-8")


def write_merged(
    adapter: Path,
    base: Path,
    out: Path,
    dtype: str = "auto",
    layout: str = TRANSFORMERS,
    names: PageNames = PageNames(),
) -> None:
    """A whole checkpoint with the adapter merged into it.

    Each update is added in float32 and the sum cast once, layer by layer, so that a 7B base in bf16 needs no
    second copy. The adapter may be on any module. dtype: of the result; auto keeps the base's. layout: of the
    result, whatever the base's.

    Raises:
        CheckpointError, ValueError: as `write_adapter`, and if the merged model differs from base plus adapter.
    """
    checkpoint = open_checkpoint(base)
    tuned: Any = load_lora(checkpoint.model(checkpoint.dtype), adapter, trainable=False, anywhere=True)
    beside = fixed_logps(tuned.base_model.model)
    merge_layers(tuned)
    merged = tuned.unload()
    check_merged(beside, merged, f"adapter={adapter}")
    _write_model(merged, checkpoint, out, dtype, layout, names)


def write_trained(
    weights: Mapping[str, Tensor],
    base: Path,
    out: Path,
    dtype: str = "auto",
    layout: str = TRANSFORMERS,
    names: PageNames = PageNames(),
) -> None:
    """A whole checkpoint with some of its weights replaced: full fine-tuning's.

    weights: by their names in the transformers model. dtype: of the result; auto keeps the base's. layout: of the
    result, whatever the base's.

    Raises:
        CheckpointError: if a name or shape does not fit the base.
    """
    checkpoint = open_checkpoint(base)
    model = checkpoint.model(checkpoint.dtype)
    own = dict(model.named_parameters())
    with torch.no_grad():
        for name, value in weights.items():
            if name not in own or own[name].shape != value.shape:
                found = tuple(own[name].shape) if name in own else "no such weight"
                raise CheckpointError(
                    f"{base}: trained weight {name} {tuple(value.shape)} does not fit the base ({found})"
                )
            own[name].copy_(value)
    _write_model(model, checkpoint, out, dtype, layout, names)


def load_base(base: Path) -> Any:
    """The transformers model of a Janus directory in the dtype of its files.

    Raises:
        CheckpointError: if it cannot be loaded.
    """
    checkpoint = open_checkpoint(base)
    return checkpoint.model(checkpoint.dtype)


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


def _write_model(model: Any, base: JanusCheckpoint, out: Path, dtype: str, layout: str, names: PageNames) -> None:
    named = names.base or str(base.folder.resolve())
    if dtype != "auto":
        model.to(DTYPES[dtype])
    _copy_rest(base, out, layout)
    if layout == ORIGINAL:
        config = _write_original(model, base, out, dtype)
        page = _original_page(named, has_presets(config))
    else:
        model.save_pretrained(out)
        if base.layout == ORIGINAL:
            write_transformers_processor(base, out)
        page = _checkpoint_page(named, names.folder)
    (out / "README.md").write_text(page, encoding="utf-8")


def _copy_rest(base: JanusCheckpoint, out: Path, layout: str) -> None:
    """The base's tokenizer, chat templates and, where the layout stays, its processor's and generation's settings."""
    for source in base.folder.iterdir():
        name = source.name.lower()
        if name.startswith(".") or name.endswith((*WEIGHTS, ".py")) or name in WRITTEN_ANEW:
            continue
        if layout != base.layout and name in ONE_LAYOUT_ONLY:
            continue
        if source.is_dir():
            shutil.copytree(source, out / source.name, dirs_exist_ok=True)
        else:
            shutil.copyfile(source, out / source.name)


def _write_original(model: Any, base: JanusCheckpoint, out: Path, dtype: str) -> dict[str, Any]:
    """Weights and config in the original layout; returns the config.

    Weights unknown to transformers' Janus are taken from a base of the original layout.
    """
    from huggingface_hub import save_torch_state_dict

    weights = {name: value.detach() for name, value in to_original(model.state_dict()).items()}
    kind = weights["language_model.lm_head.weight"].dtype
    if base.layout == ORIGINAL:
        rest = {name: value for name, value in mapped_tensors(base.folder).items() if has_no_counterpart(name)}
        weights |= rest if dtype == "auto" else {name: value.to(kind) for name, value in rest.items()}
        config: dict[str, Any] = dict(read_json(base.folder / "config.json"))
        config["torch_dtype"] = config["language_config"]["torch_dtype"] = _name(kind)
    else:
        weights[CODES_USED] = torch.zeros(CODES_USED_SLOTS, dtype=kind)
        config = write_config(base.config, _name(kind))
        write_original_processor(base, out)
    save_torch_state_dict(weights, out, metadata={"format": "pt"})
    (out / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    return config


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


# Comes first in every snippet of a card, whose reader has peft and transformers but not this project. Both packages
# import torchvision if it is installed; marked as absent, they work without it.
_WITHOUT_BROKEN_TORCHVISION = """import sys

try:
    import torchvision
except (ImportError, RuntimeError):  # absent, or built for CUDA beside a CPU build of torch: nothing here needs it
    sys.modules["torchvision"] = None
"""


def _adapter_page(base: str, original: bool, folder: str) -> str:
    note = (
        "\nThat checkpoint is in the layout Janus was released in, which transformers does not read: where the code"
        "\nbelow loads the base, give the same model in transformers' layout, as deepseek-community publishes it.\n"
    )
    return f"""A LoRA adapter trained with BiCoT-GRPO (arXiv 2505.00703) for the Janus checkpoint
`{base}`. If that moved, write its new place into `adapter_config.json`.
{note if original else ""}
```python
{_WITHOUT_BROKEN_TORCHVISION}
from peft import PeftModel
from transformers import JanusForConditionalGeneration

base = JanusForConditionalGeneration.from_pretrained({base!r}, tie_word_embeddings=False)
model = PeftModel.from_pretrained(base, {folder!r})
```
"""


def _checkpoint_page(base: str, folder: str) -> str:
    return f"""A Janus checkpoint trained with BiCoT-GRPO (arXiv 2505.00703) from
`{base}`; tokenizer, processor and chat templates are the base's.

```python
{_WITHOUT_BROKEN_TORCHVISION}
from transformers import AutoProcessor, JanusForConditionalGeneration

model = JanusForConditionalGeneration.from_pretrained({folder!r})
processor = AutoProcessor.from_pretrained({folder!r})
```
"""


def _original_page(base: str, presets: bool) -> str:
    readers = (
        "It is loaded by the released code (github.com/deepseek-ai/Janus) or, as `model.path`, by the trainer"
        if presets
        else "Its sizes are none of the released code's presets: it is loaded, as `model.path`, only by the trainer"
    )
    return f"""A Janus checkpoint trained with BiCoT-GRPO (arXiv 2505.00703) from
`{base}`, in the layout Janus was released in.
{readers} that wrote it.
"""
