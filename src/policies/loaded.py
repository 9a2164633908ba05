"""What is checked, and said, of a model once it is loaded."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

from src.config.errors import UserError

if TYPE_CHECKING:
    from omegaconf import DictConfig


def check_loaded(
    policy: Any,
    model: Mapping[str, Any],
    put_in: object = None,
    training: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> None:
    """Hold rollout, training and reference of a policy that stands on its device to its modules' own forward.

    model: its config, for the message. put_in: weights or checkpoint that were loaded on top. training: what a training
    pass runs under. A policy of another kind than Janus is left to its own tests.

    Raises:
        UserError: where they differ by more than rounding; see `src.policies.agreement`.
    """
    from src.policies.agreement import Disagreement, check_agreement
    from src.policies.janus import JanusPolicy

    if not isinstance(policy, JanusPolicy):
        return
    adapter, path = model.get("adapter"), model.get("path") or model.get("repository")
    given = f"model.path={path}" if adapter is None else f"model.adapter={adapter}"
    try:
        check_agreement(policy, given if put_in is None else str(put_in), training)
    except Disagreement as error:
        raise UserError(str(error)) from error


def reference_note(config: DictConfig, needs_reference: bool) -> str | None:
    """What a run that starts from an adapter says: of whom its KL tells the distance, and how to have it otherwise.

    None where no adapter is given, or nothing asks for a reference.
    """
    adapter = config.model.get("adapter")
    if adapter is None or not needs_reference:
        return None
    merged = f"{str(adapter).rstrip('/')}-merged"
    base = config.model.get("path")
    words = [f"adapter={adapter}", *([] if base is None else [f"base={base}"]), f"out={merged}", "merge=true"]
    return (
        f"model.adapter={adapter}: training goes on from it (with its own rank, alpha and targets, not model.lora's);"
        " the reference is the base without it, so the KL starts at their distance, not at 0.\n"
        "To have the adapter as reference, merge it and train a fresh one on the result:\n"
        f"  python -m src.export {shlex.join(words)}\n"
        "  and this command again with"
        f" {shlex.join([f'model.path={merged}', 'model.adapter=null'])}"
    )
