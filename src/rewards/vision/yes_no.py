"""The probability of "yes" from the logits of a language model's first answer token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

# With and without the space that byte-level vocabularies keep inside of a word's first token.
YES_FORMS = ("yes", "Yes", "YES", " yes", " Yes")
NO_FORMS = ("no", "No", "NO", " no", " No")


@dataclass(frozen=True, slots=True)
class AnswerTokens:
    """The ids that count as "yes" and as "no"; no id is in both."""

    yes: tuple[int, ...]
    no: tuple[int, ...]


def answer_tokens(
    tokenizer: Any, yes_forms: Sequence[str] = YES_FORMS, no_forms: Sequence[str] = NO_FORMS
) -> AnswerTokens:
    """The forms of both answers that are one token of `tokenizer`.

    A form of several tokens is left out: its first one also begins other words ("Y" of "YES").

    Raises:
        ValueError: if an answer has no one-token form.
    """
    found = AnswerTokens(_single_tokens(tokenizer, yes_forms), _single_tokens(tokenizer, no_forms))
    for answer, forms, ids in (("yes", yes_forms, found.yes), ("no", no_forms, found.no)):
        if not ids:
            raise ValueError(f"the tokenizer has no single token for {answer!r}; tried {', '.join(map(repr, forms))}")
    return found


def yes_probability(logits: Tensor, tokens: AnswerTokens, temperature: float = 1.0) -> Tensor:
    """P(yes) / (P(yes) + P(no)) of softmax(logits / temperature); each answer's tokens add up.

    logits (N, V) of any dtype -> (N,) float32 in [0, 1]. All other answers cancel.
    """
    scaled = logits.float() / temperature
    yes, no = (scaled[:, list(ids)].logsumexp(dim=1) for ids in (tokens.yes, tokens.no))
    return torch.sigmoid(yes - no)


def check_temperature(temperature: float) -> None:
    """Raise ValueError unless it can divide logits."""
    if not temperature > 0:
        raise ValueError(f"temperature={temperature}: expected a number > 0")


def _single_tokens(tokenizer: Any, forms: Sequence[str]) -> tuple[int, ...]:
    encoded = [tokenizer.encode(form, add_special_tokens=False) for form in forms]
    ids = {ids[0] for ids in encoded if len(ids) == 1}
    return tuple(sorted(ids - {tokenizer.unk_token_id}))
