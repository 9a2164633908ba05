"""From logits to P(yes)."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from src.rewards.vision.yes_no import AnswerTokens, answer_tokens, yes_probability
from tests.rewards.tiny_experts.text import qwen_tokenizer

LOGITS = st.lists(st.floats(-80, 80, width=32), min_size=6, max_size=6)


@given(LOGITS, st.sampled_from([0.3, 1.0, 2.5]))
def test_probability_is_the_share_of_yes_in_the_softmax(logits: list[float], temperature: float) -> None:
    chances = (torch.tensor(logits, dtype=torch.float64) / temperature).log_softmax(0)
    yes, no = chances[[1, 4]].exp().sum(), chances[[3]].exp().sum()
    found = yes_probability(torch.tensor([logits]), AnswerTokens((1, 4), (3,)), temperature)
    assert found.dtype == torch.float32
    if yes + no > 0:  # else the other answers took all there is in float64
        assert found.item() == pytest.approx((yes / (yes + no)).item(), abs=2e-5)


def test_what_neither_answer_says_does_not_matter() -> None:
    tokens = AnswerTokens((0,), (1,))
    logits = torch.tensor([[1.0, 2.0, -300.0], [1.0, 2.0, 300.0], [1001.0, 1002.0, 0.0]])
    torch.testing.assert_close(
        yes_probability(logits, tokens), torch.full((3,), 1.0).sub(2.0).sigmoid(), rtol=0, atol=0
    )


def test_half_precision_logits_are_read_in_float32() -> None:
    found = yes_probability(torch.tensor([[8.0, 7.0]], dtype=torch.bfloat16), AnswerTokens((0,), (1,)))
    assert found.item() == pytest.approx(1 / (1 + 2.718281828459045**-1), abs=1e-6)


def test_forms_of_one_token_count() -> None:
    """The tokenizer knows yes, no, " yes" and " no"; "Yes" is three tokens, whose first begins other words."""
    tokenizer = qwen_tokenizer()
    found = answer_tokens(tokenizer)
    assert tokenizer.convert_ids_to_tokens(list(found.yes)) == ["yes", "Ġyes"]
    assert tokenizer.convert_ids_to_tokens(list(found.no)) == ["no", "Ġno"]
    assert answer_tokens(tokenizer, ("yes",), ("no",)) == AnswerTokens((257,), (258,))


def test_a_tokenizer_without_the_words_is_refused() -> None:
    with pytest.raises(ValueError, match="the tokenizer has no single token for 'no'; tried 'nope', ' nope'"):
        answer_tokens(qwen_tokenizer(), no_forms=("nope", " nope"))
