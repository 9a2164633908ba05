"""LoRA on the language model of a Janus: attach and load (PEFT's own format; PEFT itself writes it)."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from torch import nn

if TYPE_CHECKING:
    from peft import PeftModel

ADAPTER_NAME = "default"
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True, slots=True)
class LoraSettings:
    """Rank, scale (alpha / r), dropout and the projections that get an adapter (LoRA, arXiv 2106.09685)."""

    r: int = 16
    alpha: float = 32.0
    dropout: float = 0.0
    targets: Sequence[str] = PROJECTIONS


def target_pattern(targets: Sequence[str]) -> str:
    """A pattern that hits the language model's projections only, never the vision tower's of the same name."""
    unknown = sorted(set(targets) - set(PROJECTIONS))
    if unknown:
        raise ValueError(f"model.lora.targets: unknown {', '.join(unknown)}; known are {', '.join(PROJECTIONS)}")
    return rf".*language_model\.layers\.\d+\.(self_attn|mlp)\.({'|'.join(targets)})"


def attach_lora(model: nn.Module, settings: LoraSettings) -> PeftModel:
    """Freeze `model` and put fresh, trainable adapters (B = 0: no change yet) on its language model."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=settings.r,
        lora_alpha=settings.alpha,  # type: ignore[arg-type]
        lora_dropout=settings.dropout,
        target_modules=target_pattern(settings.targets),
        bias="none",
    )
    return get_peft_model(model, config)  # type: ignore[arg-type, return-value]


def check_adapter_directory(path: Path) -> None:
    """Raise ValueError, before anything is loaded, unless `path` holds the two files of a PEFT adapter."""
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        # PEFT would look for a missing file on a model hub.
        if not (path / name).is_file():
            raise ValueError(f"model.adapter={path}: no {name} there; give a folder written by PEFT")
    _check_plain_lora(path / "adapter_config.json")


def _check_plain_lora(file: Path) -> None:
    """Raise ValueError for an adapter of another kind, and for settings by which PEFT would import or unpickle.

    ``megatron_config`` makes it import the module that ``megatron_core`` names; the initialisations beside the usual
    ones run on the base model and may read pickled caches from paths in the config.
    """
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file}: not valid JSON ({error}); the adapter is damaged") from error
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        kind = config.get("peft_type") if isinstance(config, dict) else None
        raise ValueError(f"{file}: peft_type={kind}: expected LORA, the only kind of adapter that is trained here")
    if config.get("megatron_config") is not None:
        raise ValueError(f"{file}: megatron_config names code to import; remove it, Janus has no Megatron layers")
    start = config.get("init_lora_weights")
    if not (start is None or isinstance(start, bool) or start == "gaussian"):
        raise ValueError(
            f"{file}: init_lora_weights={start}: changes the base model when it is loaded; convert the adapter to a"
            " plain one with PEFT's save_pretrained(path_initial_model_for_weight_conversion=...)"
        )


def check_adapter_fits(adapter: Path, shapes: Mapping[str, Sequence[int]], base: Path) -> None:
    """Raise ValueError where an adapter's shapes are not those of its base's weights.

    Reads the adapter's header only. A layer the base does not have is left to `load_lora`.

    shapes: of the base's weights by transformers' names. base: its directory, for the message.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(adapter / "adapter_model.safetensors"), "pt") as opened:
            for key in opened.keys():  # noqa: SIM118
                layer, found, _ = key.removeprefix("base_model.model.").partition(".lora_")
                weight = shapes.get(f"{layer}.weight")
                if not found or weight is None:
                    continue
                # A reads the layer's input, B writes its output.
                axis = 1 if ".lora_A." in key else 0
                has = opened.get_slice(key).get_shape()[axis]
                if has != weight[axis]:
                    raise ValueError(
                        f"model.adapter={adapter}: does not fit the base model: {key} is made for a width of {has},"
                        f" {base} has {weight[axis]}"
                    )
    except SafetensorError as error:
        raise ValueError(f"model.adapter={adapter}: damaged: {error}") from error


def load_lora(model: nn.Module, path: Path, trainable: bool = True) -> PeftModel:
    """Put the adapter saved at `path` on `model`.

    Raises:
        ValueError: if `path` holds no adapter or one whose keys or shapes do not fit `model`.
    """
    from peft import PeftModel

    return _fitting(
        path,
        ADAPTER_NAME,
        lambda: PeftModel.from_pretrained(model, str(path), is_trainable=trainable),  # type: ignore[arg-type]
    )


def add_lora(model: PeftModel, path: Path, name: str) -> None:
    """Put a further adapter beside those that `model` has, frozen and switched off.

    name: letters, digits and underscores, and none that is taken. Raises ValueError as `load_lora` does.
    """

    def load() -> PeftModel:
        model.load_adapter(str(path), name, is_trainable=False)
        return model

    _fitting(path, name, load)


def _fitting(path: Path, name: str, load: Callable[[], PeftModel]) -> PeftModel:
    """What `load` gives; what is wrong with the adapter at `path` as one ValueError."""
    from safetensors import SafetensorError

    check_adapter_directory(path)
    try:
        peft_model = load()
        problem = _key_problem(peft_model, path / "adapter_model.safetensors", name)
    except (SafetensorError, TypeError, KeyError, OSError) as error:
        raise ValueError(f"model.adapter={path}: damaged: {type(error).__name__}: {error}") from error
    except (RuntimeError, ValueError) as error:
        problem = next((line.strip() for line in str(error).splitlines() if "size mismatch" in line), str(error))
        raise ValueError(f"model.adapter={path}: does not fit the base model: {problem}") from error
    if problem is not None:
        raise ValueError(f"model.adapter={path}: does not fit the base model: {problem}")
    return peft_model


def _key_problem(model: PeftModel, file: Path, name: str) -> str | None:
    """A key that only the file or only the model has; PEFT leaves such keys out with a warning at most."""
    from peft import get_peft_model_state_dict
    from safetensors import safe_open

    with safe_open(str(file), "pt") as opened:
        saved = set(opened.keys())
    own = set(get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False))  # type: ignore[arg-type]
    if extra := sorted(saved - own):
        return f"{len(extra)} keys of the adapter are not in it, such as {extra[0]}"
    if missing := sorted(own - saved):
        return f"{len(missing)} keys are missing in the adapter, such as {missing[0]}"
    return None
