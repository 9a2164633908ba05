"""Reads a PEFT adapter's two files before any weight of the base, and checks that every code path supports it.

Rollouts, training, the reference and a merge each apply an adapter in their own form. All of them support plain LoRA
on the language model's projections. Anything else is refused here by name: a partly applied adapter would silently
train and paint something else.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from src.config.schema import PROJECTIONS
from src.policies.adapter_patterns import check_patterns

NAMED = 6  # modules in a message, at most
CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
# Modules (by their names in the transformers model) that rollout, training and reference apply adapters to.
HONOURED = re.compile(rf"model\.language_model\.layers\.\d+\.(self_attn|mlp)\.({'|'.join(PROJECTIONS)})")
# Modules that read pictures. Nothing here runs them, so an adapter on them changes nothing and has no gradient.
UNUSED = re.compile(r"model\.(vision_model|aligner)\..+")

_TENSOR = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_[AB]\.weight")
# Settings of plain LoRA, and those that do not affect what the adapter computes.
_KNOWN = frozenset(
    "r lora_alpha rank_pattern alpha_pattern use_rslora lora_dropout init_lora_weights task_type target_modules"
    " exclude_modules layers_to_transform layers_pattern peft_type auto_mapping peft_version base_model_name_or_path"
    " revision inference_mode megatron_config megatron_core qalora_group_size ensure_weight_tying"
    " runtime_config".split()
)
_NEUTRAL: tuple[Any, ...] = (None, False, [], {}, "none")
_ELSEWHERE = (
    "only plain LoRA is applied alike by rollout, training and reference; train a plain one, or, where PEFT can merge"
    " it (merge_and_unload), give the merged checkpoint as model.path"
)


def check_adapter_directory(path: Path) -> None:
    """Raise ValueError, before anything is loaded, unless `path` contains a PEFT adapter declared as plain LoRA."""
    for name in (CONFIG, TENSORS):
        # PEFT would look for a missing file on a model hub.
        if not (path / name).is_file():
            raise ValueError(f"model.adapter={path}: no {name} there; give a folder written by PEFT")
    _check_config(path / CONFIG)


def _check_config(file: Path) -> None:
    """Raise ValueError for an adapter of another kind, and for settings by which PEFT would import or unpickle.

    ``megatron_config`` makes it import the module that ``megatron_core`` names; the unusual initialisations run on
    the base model and may read pickled caches from paths in the config.
    """
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file}: not valid JSON ({error}); the adapter is damaged") from error
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        kind = config.get("peft_type") if isinstance(config, dict) else None
        raise ValueError(f"{file}: peft_type={kind}: expected LORA, the only supported kind of adapter")
    if config.get("megatron_config") is not None:
        raise ValueError(f"{file}: megatron_config names code to import; remove it, Janus has no Megatron layers")
    start = config.get("init_lora_weights")
    # An orthogonal start also leaves the base unchanged, and the loaded weights overwrite it.
    if not (start is None or isinstance(start, bool) or start in ("gaussian", "orthogonal")):
        raise ValueError(
            f"{file}: init_lora_weights={start}: may change the base model on loading; convert the adapter to a"
            " plain one with PEFT's save_pretrained(path_initial_model_for_weight_conversion=...)"
        )
    if config.get("task_type") not in (None, "CAUSAL_LM"):
        raise ValueError(f"{file}: task_type={config['task_type']}: expected CAUSAL_LM or null")
    for key, value in config.items():
        if key not in _KNOWN and value not in _NEUTRAL:
            raise ValueError(f"{file}: {key}={json.dumps(value)[:80]}: not supported: {_ELSEWHERE}")
    _check_scale(file, config)


def _check_scale(file: Path, config: Mapping[str, Any]) -> None:
    """Raise ValueError for a rank or alpha by which some layer's update, ``alpha / r * B A``, is zero or not finite."""

    def rank(value: Any) -> bool:
        return isinstance(value, int) and not isinstance(value, bool) and value >= 1

    def scale(value: Any) -> bool:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and value != 0 and math.isfinite(value)

    a_rank = "a whole number of at least 1"
    a_scale = "a finite number other than 0: with 0 the adapter would do nothing, and learn nothing"
    wanted: tuple[tuple[str, Callable[[Any], bool], str], ...] = (("r", rank, a_rank), ("lora_alpha", scale, a_scale))
    for key, fits, words in wanted:
        if key in config and not fits(config[key]):
            raise ValueError(f"{file}: {key}={config[key]}: expected {words}")
    for key, fits, words in (("rank_pattern", rank, a_rank), ("alpha_pattern", scale, a_scale)):
        pattern = config.get(key) or {}
        if not isinstance(pattern, dict):
            raise ValueError(f"{file}: {key}={pattern}: expected a mapping from layers to numbers")
        for layers, value in pattern.items():
            if not fits(value):
                raise ValueError(f"{file}: {key}: {layers}={value}: expected {words}")


def check_adapter_fits(adapter: Path, shapes: Mapping[str, Sequence[int]], base: Path) -> None:
    """Raise ValueError where an adapter's tensors or patterns are refused, or its shapes are not its base's.

    Reads the adapter's own files only. A layer the base does not have is left to `load_lora`.

    shapes: of the base's weights by transformers' names. base: its directory, for the message.
    """
    check_patterns(adapter, _modules(shapes))
    check_adapter_tensors(adapter)
    for key, has in _shapes(adapter).items():
        layer, found, _ = key.removeprefix("base_model.model.").partition(".lora_")
        weight = shapes.get(f"{layer}.weight")
        if not found or weight is None:
            continue
        # A reads the layer's input, B writes its output.
        axis = 1 if ".lora_A." in key else 0
        if has[axis] != weight[axis]:
            raise ValueError(
                f"model.adapter={adapter}: does not fit the base model: {key} is made for a width of {has[axis]},"
                f" {base} has {weight[axis]}"
            )


def _modules(weights: Iterable[str]) -> set[str]:
    """The modules that hold weights of these names, and those around them."""
    parts = (name.split(".") for name in weights)
    return {".".join(part[:length]) for part in parts for length in range(len(part))}


def check_adapter_tensors(adapter: Path, anywhere: bool = False) -> None:
    """Raise ValueError, naming module or tensor, unless all of an adapter's tensors are supported and finite.

    anywhere: allow adapters on any module (for a merge, which leaves none of them separate).
    """
    names = {key: _TENSOR.fullmatch(key) for key in _shapes(adapter)}
    for key, name in names.items():
        if name is None:
            raise ValueError(f"model.adapter={adapter}: {key} is not a tensor of plain LoRA: {_ELSEWHERE}")
    modules = dict.fromkeys(name["module"] for name in names.values() if name is not None)
    outside = [m for m in modules if not HONOURED.fullmatch(m) and not UNUSED.fullmatch(m)]
    if outside and not anywhere:
        more = f" and {len(outside) - NAMED} more" if len(outside) > NAMED else ""
        raise ValueError(
            f"model.adapter={adapter}: has adapters on {', '.join(outside[:NAMED])}{more}; rollout, training and"
            f" reference apply them alike only on the language model's {', '.join(PROJECTIONS)}. Merge it into its base"
            f" with `python -m src.export adapter={adapter} out=MERGED merge=true`, and give model.path=MERGED"
        )
    _check_numbers(adapter)


def unused_modules(adapter: Path) -> list[str]:
    """The modules of an adapter that nothing here runs: those of the vision tower."""
    found = (_TENSOR.fullmatch(key) for key in _shapes(adapter))
    modules = dict.fromkeys(name["module"] for name in found if name is not None)
    return [module for module in modules if UNUSED.fullmatch(module)]


def _shapes(adapter: Path) -> dict[str, list[int]]:
    """The shapes of an adapter's tensors by name, from the file's header."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(adapter / TENSORS), "pt") as opened:
            return {key: opened.get_slice(key).get_shape() for key in opened.keys()}  # noqa: SIM118 (no mapping)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"model.adapter={adapter}: damaged: {error}") from error


def _check_numbers(adapter: Path) -> None:
    """Raise ValueError for a tensor with NaN or infinity, and for a layer whose A and B are both 0: no gradient."""
    from safetensors import safe_open

    zero = set()
    with safe_open(str(adapter / TENSORS), "pt") as opened:
        for key in opened.keys():  # noqa: SIM118 (no mapping)
            value = opened.get_tensor(key).float()
            if not bool(torch.isfinite(value).all()):
                raise ValueError(
                    f"model.adapter={adapter}: {key} contains NaN or infinity; give an undamaged adapter from"
                    " before the training diverged"
                )
            if not bool(value.any()):
                zero.add(key)
    for key in sorted(zero):
        if ".lora_A." in key and key.replace(".lora_A.", ".lora_B.") in zero:
            layer = key.partition(".lora_A.")[0]
            raise ValueError(
                f"model.adapter={adapter}: {layer}: lora_A and lora_B are both 0: the adapter does nothing there and"
                " would never learn; leave the layer out or start with a new adapter (model.adapter=null)"
            )
