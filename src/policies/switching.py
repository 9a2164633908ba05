"""Several trained models on one base in memory: adapters are switched on and off, full weights are lent."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from src.policies.base import Decoder, Policy
from src.policies.engine.snapshot import lent
from src.policies.janus import JanusPolicy
from src.policies.lora import add_lora
from src.policies.weight_files import check_finite

# In front of a parameter's name in the weights that a run of full fine-tuning writes.
POLICY = "policy."


def add_adapter(policy: Policy, path: Path, name: str) -> None:
    """Put the PEFT adapter at `path` on the policy's base, switched off.

    Raises:
        ValueError: if it does not fit, or the policy holds no adapters at all.
    """
    if not isinstance(policy, JanusPolicy) or policy.adapter is None:
        raise ValueError(f"adapter={path}: {type(policy).__name__} cannot take more adapters; it needs model.lora")
    add_lora(policy.adapter, path, name)


@contextmanager
def base_decoder(policy: Policy) -> Iterator[Decoder]:
    """A decoder of the base, adapters left out."""
    with policy.reference() as decoder:
        yield decoder


@contextmanager
def adapter_decoder(policy: JanusPolicy, name: str) -> Iterator[Decoder]:
    """A decoder of the base with one of its adapters; what was switched on before is again afterwards."""
    model: Any = policy.adapter
    before = model.active_adapter
    model.set_adapter(name)
    try:
        yield policy.decoder()
    finally:
        model.set_adapter(before)


@contextmanager
def weights_decoder(policy: Policy, path: Path) -> Iterator[Decoder]:
    """A decoder of the base with the weights at `path` in place of its own, which are put back exactly.

    For that long the weights that are replaced are held twice.
    """
    from safetensors.torch import load_file

    values = {name.removeprefix(POLICY): value for name, value in load_file(str(path)).items()}
    parameters = base_parameters(policy)
    with lent({name: parameters[name] for name in values}, values):
        if isinstance(policy, JanusPolicy) and policy.adapter is not None:
            with base_decoder(policy) as decoder:
                yield decoder
        else:
            # The reference of a policy without adapters is a copy, which the lent weights do not reach.
            yield policy.decoder()


def check_weights_fit(policy: Policy, path: Path) -> None:
    """Raise ValueError unless the weights at `path` are weights of the policy's base, and numbers."""
    from safetensors import SafetensorError, safe_open
    from safetensors.torch import load_file

    shapes = {name: list(parameter.shape) for name, parameter in base_parameters(policy).items()}
    try:
        with safe_open(str(path), "pt") as opened:
            stored = {name.removeprefix(POLICY): opened.get_slice(name).get_shape() for name in opened.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path}: damaged: {error}") from error
    check_finite(load_file(str(path)), path)
    wrong = [
        f"{name} {shape} has no place in it" if name not in shapes else f"{name} is {shape}, its own {shapes[name]}"
        for name, shape in stored.items()
        if shapes.get(name) != shape
    ]
    if wrong:
        raise ValueError(f"{path}: does not fit the base model: {wrong[0]}")


def base_parameters(policy: Policy) -> Mapping[str, nn.Parameter]:
    """The base's parameters, without adapters, under the names they have in a run of full fine-tuning."""
    if isinstance(policy, JanusPolicy):
        named = policy.janus.named_parameters()
        return {f"network.{name.replace('.base_layer.', '.')}": value for name, value in named if ".lora_" not in name}
    module: Any = policy
    return dict(module.named_parameters())
