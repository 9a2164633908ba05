"""LoRA on the language model of a Janus: attach and load (PEFT's own format; PEFT itself writes it)."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from src.config.schema import PROJECTIONS, LoraConfig
from src.policies.adapter_files import (
    HONOURED,
    TENSORS,
    UNUSED,
    check_adapter_directory,
    check_adapter_tensors,
    unused_modules,
)
from src.policies.adapter_patterns import check_patterns

if TYPE_CHECKING:
    from peft import PeftModel

ADAPTER_NAME = "default"


def target_pattern(targets: Sequence[str]) -> str:
    """A pattern that hits the language model's projections only, never the vision tower's of the same name."""
    unknown = sorted(set(targets) - set(PROJECTIONS))
    if unknown:
        raise ValueError(f"model.lora.targets: unknown {', '.join(unknown)}; known are {', '.join(PROJECTIONS)}")
    return rf".*language_model\.layers\.\d+\.(self_attn|mlp)\.({'|'.join(targets)})"


def attach_lora(model: nn.Module, settings: LoraConfig) -> PeftModel:
    """Freeze `model` and put fresh, trainable adapters (B = 0: no change yet) on its language model."""
    import peft

    config = peft.LoraConfig(
        r=settings.r,
        lora_alpha=settings.alpha,  # type: ignore[arg-type]
        lora_dropout=settings.dropout,
        target_modules=target_pattern(settings.targets),
        bias="none",
    )
    attached: Any = peft.get_peft_model(model, config)  # type: ignore[arg-type]
    # PEFT's own layers come in training mode, with dropout: training's log-probs would not be the sampler's.
    return attached.eval()


def load_lora(model: nn.Module, path: Path, trainable: bool = True, anywhere: bool = False) -> PeftModel:
    """Put the adapter saved at `path` on `model`, in eval mode.

    What has no part in painting (the vision tower) stays frozen, dropout is set to 0; both are said if `trainable`.

    anywhere: take adapters on any module. For merging only: rollouts and training would ignore some.

    Raises:
        ValueError: if `path` holds no adapter, one of a kind that is not honoured everywhere, one that holds NaN, or
            one whose keys or shapes do not fit `model`.
    """
    from peft import PeftModel

    loaded = _fitting(
        model,
        path,
        ADAPTER_NAME,
        lambda: PeftModel.from_pretrained(model, str(path), is_trainable=trainable),  # type: ignore[arg-type]
        anywhere,
    )
    if trainable:
        _freeze_unused(loaded, path)
        _drop_dropout(loaded, path)
    return loaded


def add_lora(model: PeftModel, path: Path, name: str) -> None:
    """Put a further adapter beside those that `model` has, frozen and switched off.

    name: letters, digits and underscores, and none that is taken. Raises ValueError as `load_lora` does.
    """

    def load() -> PeftModel:
        model.load_adapter(str(path), name, is_trainable=False)
        return model

    _fitting(model, path, name, load)


def _freeze_unused(model: PeftModel, path: Path) -> None:
    """Freeze the adapters that no loss has a path to: DDP fails at parameters without a gradient."""
    modules = unused_modules(path)
    if not modules:
        return
    for name, parameter in model.named_parameters():
        if ".lora_" in name and UNUSED.match(name.removeprefix("base_model.model.")):
            parameter.requires_grad_(False)
    warnings.warn(
        f"model.adapter={path}: {len(modules)} of its modules read pictures, such as {modules[0]}; they change nothing"
        " here and stay as they are (frozen)",
        stacklevel=2,
    )


def _drop_dropout(model: PeftModel, path: Path) -> None:
    """Set the adapter's dropout to 0, in its layers and in the config that is saved with it."""
    config: Any = model.peft_config[ADAPTER_NAME]
    if not config.lora_dropout:
        return
    warnings.warn(
        f"model.adapter={path}: lora_dropout={config.lora_dropout} is set to 0: with dropout the log-probs of training"
        " would not be the sampler's",
        stacklevel=2,
    )
    config.lora_dropout = 0.0
    for layer in lora_layers(model):
        layer.lora_dropout[ADAPTER_NAME] = nn.Identity()


def lora_layers(model: nn.Module) -> list[Any]:
    """The modules with LoRA beside them."""
    return [module for module in model.modules() if hasattr(module, "lora_A")]


@contextmanager
def adapters_off(model: PeftModel) -> Iterator[None]:
    """PEFT's own ``disable_adapter`` that leaves trainable what was trainable; PEFT makes all of the adapter so."""
    trained = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    try:
        with model.disable_adapter():
            yield
    finally:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(trained[name])


def _fitting(
    model: nn.Module, path: Path, name: str, load: Callable[[], PeftModel], anywhere: bool = False
) -> PeftModel:
    """What `load` makes of `model`, in eval mode; what is wrong with the adapter at `path` as one ValueError."""
    from safetensors import SafetensorError

    check_adapter_directory(path)
    check_adapter_tensors(path, anywhere)
    check_patterns(path, (module for module, _ in model.named_modules()))
    try:
        peft_model = load().eval()
        problem = _key_problem(peft_model, path / TENSORS, name) or _kind_problem(peft_model, name, anywhere)
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


def _kind_problem(model: PeftModel, name: str, anywhere: bool) -> str | None:
    """A layer whose update is no plain pair of products, or that stands where it would be ignored.

    The files said otherwise; this is about versions of PEFT that read them in another way.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    for place, module in model.named_modules():
        if isinstance(module, AuxiliaryTrainingWrapper):
            return f"{place}: replaces the module, which is not plain LoRA"
        if not isinstance(module, BaseTunerLayer) or name not in getattr(module, "lora_A", {}):
            continue
        layer: Any = module
        own = place.removeprefix("base_model.model.")
        if layer.lora_variant.get(name) is not None or layer.lora_B[name].bias is not None:
            return f"{own}: its adapter is not plain LoRA"
        if not anywhere and not HONOURED.fullmatch(own) and not UNUSED.fullmatch(own):
            return f"{own}: rollout, training and reference apply no adapter there"
    return None
