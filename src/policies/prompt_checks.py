"""Before anything is rolled out: do the prompts fit the model, and does it know their words?"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from src.config.errors import UserError
from src.config.masking import masked_text

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from src.policies.prompt_room import PromptRoom
    from src.rewards.ensemble import RewardEnsemble
    from src.values import PromptRecord

JANUS = "src.policies.load.load_janus"
EXAMPLES = 5


def room_for_prompts(model: Mapping[str, Any], plan_tokens: int) -> PromptRoom | None:
    """What the model of a plain ``model`` config can read, by its files; None for a policy that is not Janus.

    Raises:
        UserError: for a checkpoint that cannot be used.
    """
    from src.config.factories import current
    from src.policies.load import find_checkpoint
    from src.policies.prompt_room import room_of_checkpoint

    if current(model.get("_target_")) != JANUS:
        return None
    try:
        return room_of_checkpoint(find_checkpoint(model.get("path"), model.get("repository")), plan_tokens)
    except ValueError as error:
        raise UserError(f"model: {error}") from error


def check_fits(room: PromptRoom | None, records: Iterable[PromptRecord]) -> None:
    """Raise UserError for the first prompt that is longer than the model can read, naming file and line."""
    for record in records:
        if room is not None and (problem := room.problem(record.prompt)):
            raise UserError(f"{record.place or 'prompts'}: {problem}")


def unknown_words(room: PromptRoom | None, prompts: Iterable[str]) -> str | None:
    """A warning of words that the model has no token for, with how many and which; None where it knows all."""
    found = {} if room is None else room.unknown_words(prompts)
    if not found:
        return None
    assert room is not None
    shown = sorted(found, key=lambda word: (-found[word], word))[:EXAMPLES]
    times = ", ".join(f"{word!r} ({found[word]})" for word in shown)
    more = f" and {len(found) - len(shown)} more" if len(found) > len(shown) else ""
    count = "1 word of the prompts is" if len(found) == 1 else f"{len(found)} words of the prompts are"
    return (
        f"{count} not in the model's vocabulary and read as {room.tokenizer.unk_token}; they and how often each stands"
        f" there: {times}{more}"
    )


def check_metadata(rewards: RewardEnsemble, records: Iterable[PromptRecord]) -> None:
    """Raise UserError for the first record whose metadata an expert of this process cannot read, with its place."""
    for record in records:
        for name, expert in rewards.experts_here.items():
            try:
                expert.check(record)
            except ValueError as error:
                raise UserError(
                    f"{record.place or repr(record.prompt)}: {error} (reported by the expert {name})"
                ) from error


def warn_of(problem: str | None) -> None:
    """Say a warning, if there is one, on standard error."""
    if problem is not None:
        print(f"warning: {masked_text(problem)}", file=sys.stderr, flush=True)


def check_data(config: DictConfig, data: Any) -> None:
    """The same for the prompts of a training run; those that are too long are bad lines to ``data.on_error``.

    Raises:
        UserError: for the first prompt that is too long, or where none is left.
    """
    from lightning.pytorch.utilities import rank_zero_warn
    from omegaconf import OmegaConf

    model: Any = OmegaConf.to_container(config.model, resolve=True)
    room = room_for_prompts(model, config.rollout.max_plan_tokens)
    if room is None:
        return
    if hasattr(data, "refuse"):
        try:
            data.refuse(room.problem)
        except ValueError as error:
            raise UserError(str(error)) from error
    records = [*data.train_records, *data.validation_records, *data.test_records]
    check_fits(room, records)
    warning = unknown_words(room, (record.prompt for record in records))
    if warning is not None:
        rank_zero_warn(warning)


def check_prompts(model: Mapping[str, Any], plan_tokens: int, records: Iterable[PromptRecord]) -> str | None:
    """`check_fits` and `unknown_words` of all records of a command."""
    records = list(records)
    room = room_for_prompts(model, plan_tokens)
    check_fits(room, records)
    return unknown_words(room, (record.prompt for record in records))
