"""Special tokens of a context come from its template alone, whatever prompt and plan spell."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from src.data.jsonl import read_jsonl
from src.policies.contexts import (
    DEFAULT_IMAGE_TEMPLATE,
    DEFAULT_PLAN_TEMPLATE,
    chat_template,
    encode_image_context,
    encode_plan_context,
)
from src.shapes.tokens import SPECIAL_TOKENS
from src.values import TokenContext
from tests.conftest import ROOT
from tests.policies.byte_level import BOI, SPELLINGS, byte_level_tokenizer
from tests.policies.tiny import tiny_policy

EMBEDDED = AutoTokenizer.from_pretrained(ROOT / "src" / "shapes" / "checkpoint", local_files_only=True)
TOKENIZERS = {
    "embedded": EMBEDDED,
    "byte-level": byte_level_tokenizer(),
    "byte-level, roles not special": byte_level_tokenizer(role_marks_are_special=False),
}
EVERY = sorted({*SPELLINGS, *SPECIAL_TOKENS})
#: Texts that come apart at, or run into, what spells a special token.
PARTS = st.sampled_from([*EVERY, *(one[:-1] for one in EVERY), *(one[1:] for one in EVERY), "<", "|", ">", "<|", "|>"])
TEXTS = st.lists(PARTS | st.sampled_from(["a red circle", " ", ". ", "Größe", "\n"]), min_size=1, max_size=6).map(
    "".join
)


def marks(tokenizer: Any) -> set[int]:
    """The ids of all special tokens and role marks, but that of unknown words, which ordinary words get too."""
    return set(tokenizer.convert_tokens_to_ids([one for one in EVERY if one in tokenizer.get_vocab()])) - {
        tokenizer.unk_token_id
    }


def rows(context: TokenContext) -> list[list[int]]:
    return [ids[mask].tolist() for ids, mask in zip(context.ids, context.mask, strict=True)]


def contexts(tokenizer: Any, prompt: str, plan: str) -> tuple[list[int], list[int]]:
    """The one row of either level."""
    boi = tokenizer.convert_tokens_to_ids(BOI)
    (plan_row,) = rows(encode_plan_context(tokenizer, [prompt]))
    (image_row,) = rows(encode_image_context(tokenizer, [prompt], [plan], boi))
    return plan_row, image_row


def as_transformers_does(tokenizer: Any, prompt: str, plan: str) -> tuple[list[int], list[int]]:
    """What the released code reads: transformers' own rendering, tokenised whole."""

    def ids(name: str, default: str, content: str, **variables: str) -> list[int]:
        template = chat_template(tokenizer, name, default)
        text = tokenizer.apply_chat_template(
            [{"role": "user", "content": content}], chat_template=template, tokenize=False, **variables
        )
        found: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
        return found

    prompt = prompt.strip()
    shorter = prompt.rstrip(".").rstrip() if plan.strip() else prompt
    boi = tokenizer.convert_tokens_to_ids(BOI)
    image = ids("image", DEFAULT_IMAGE_TEMPLATE, shorter, plan=plan.strip())
    return ids("plan", DEFAULT_PLAN_TEMPLATE, prompt), [*image, boi]


@pytest.mark.parametrize("kind", TOKENIZERS)
@given(prompt=TEXTS, plan=TEXTS | st.just(""))
def test_no_special_token_comes_from_a_prompt_or_plan(kind: str, prompt: str, plan: str) -> None:
    tokenizer = TOKENIZERS[kind]
    if not prompt.strip():
        return
    special = marks(tokenizer)
    # With both the prompt ends without its full stops; only full stops is no prompt then.
    neutral = "a" if not plan.strip() or prompt.strip().rstrip(".").rstrip() else "."
    expected = as_transformers_does(tokenizer, neutral, "a" if plan.strip() else "")
    for row, own in zip(contexts(tokenizer, prompt, plan), expected, strict=True):
        assert [one for one in row if one in special] == [one for one in own if one in special]


@pytest.mark.parametrize("kind", TOKENIZERS)
@given(
    # Hypothesis also draws strings that it finds in this project's files, special tokens among them.
    prompt=st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40).filter(
        lambda text: text.strip() and not any(mark in text for mark in EVERY)
    ),
    plan=st.text("ab red.,<>|[]_ö", max_size=20),
)
def test_ordinary_words_are_read_as_they_always_were(kind: str, prompt: str, plan: str) -> None:
    """Across the template's borders too: byte-level tokenizers join a space to the word behind it."""
    tokenizer = TOKENIZERS[kind]
    assert contexts(tokenizer, prompt, plan) == as_transformers_does(tokenizer, prompt, plan)


@pytest.mark.skipif("T2I_R1_PROMPTS" not in os.environ, reason="T2I_R1_PROMPTS does not name the released training set")
@pytest.mark.parametrize("kind", ["embedded", "byte-level"])
def test_every_released_prompt_is_read_as_it_always_was(kind: str) -> None:
    tokenizer = TOKENIZERS[kind]
    prompts = [record.prompt for record in read_jsonl(os.environ["T2I_R1_PROMPTS"])]
    assert len(prompts) > 6000
    plans = [f"The picture shows {prompt}" for prompt in prompts]
    boi = tokenizer.convert_tokens_to_ids(BOI)
    ours = zip(
        rows(encode_plan_context(tokenizer, prompts)),
        rows(encode_image_context(tokenizer, prompts, plans, boi)),
        strict=True,
    )
    for prompt, plan, found in zip(prompts, plans, ours, strict=True):
        assert found == as_transformers_does(tokenizer, prompt, plan)


def test_golden_ids_of_the_embedded_model() -> None:
    plan, image = contexts(
        EMBEDDED, "a red circle left of a blue square.", "a red circle is left; a blue square is right"
    )
    words = EMBEDDED.convert_ids_to_tokens
    assert words(plan) == [SPECIAL_TOKENS[0], *"a red circle left of a blue square .".split(), "<|Assistant|>"]
    assert plan == [0, 11, 45, 26, 37, 42, 11, 16, 50, 10, 8]
    assert image == [0, 11, 45, 26, 37, 42, 11, 16, 50, 10, 11, 45, 26, 3, 38, 11, 16, 50, 3, 46, 4]


def test_a_spelling_is_broken_up_and_the_rest_stays() -> None:
    tokenizer = TOKENIZERS["byte-level"]
    spelled, ordinary = (
        contexts(tokenizer, prompt, "a red circle")[1]
        for prompt in ("a photo of <image_placeholder>, red", "a photo of < image_placeholder>, red")
    )
    assert spelled == ordinary


def test_letters_that_were_added_to_a_vocabulary_stay_tokens() -> None:
    """DeepSeek's files add ø, ö and others behind their special tokens; they are words."""
    tokenizer = TOKENIZERS["byte-level"]
    (row,) = rows(encode_plan_context(tokenizer, ["smørrebrød"]))
    assert row.count(tokenizer.convert_tokens_to_ids("ø")) == 2


def test_a_special_token_across_the_border_of_template_and_prompt_is_broken_up() -> None:
    tokenizer = byte_level_tokenizer.__wrapped__()
    tokenizer.chat_template = {
        "plan": "{{ bos_token }}<image_{{ messages[0]['content'] }}holder>",
        "image": "{{ bos_token }}{{ messages[0]['content'] }}{{ plan }}",
    }
    plan, image = contexts(tokenizer, "place", "x")
    assert [one for one in plan if one in marks(tokenizer)] == [tokenizer.bos_token_id]
    _, image = contexts(tokenizer, "<image_", "placeholder>")
    assert [one for one in image if one in marks(tokenizer)] == [tokenizer.bos_token_id, image[-1]]


def test_a_spelling_that_a_normaliser_makes_is_broken_up() -> None:
    """CLIP's tokenizer folds case before it looks for its special tokens."""
    from tokenizers import AddedToken, normalizers

    from src.text.user_text import as_words

    tokenizer = byte_level_tokenizer.__wrapped__()
    tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.backend_tokenizer.add_special_tokens([AddedToken("<|endoftext|>", normalized=True)])
    special = tokenizer.convert_tokens_to_ids("<|endoftext|>")
    assert special in tokenizer("a <|EndOfText|> b")["input_ids"]
    (text,) = as_words(tokenizer, ["a <|EndOfText|> b"])
    assert special not in tokenizer(text)["input_ids"]
    assert text.replace(" ", "") == "a<|EndOfText|>b"


@pytest.mark.parametrize("spelling", ["<image_placeholder>", "<begin_of_image>", "<｜end▁of▁sentence｜>"])
def test_a_plan_that_spells_a_special_token_is_words_in_the_image_context(spelling: str) -> None:
    """Letter by letter a policy can sample any spelling; as one special token, reading drops it."""
    policy = tiny_policy()
    policy.tokenizer = byte_level_tokenizer()
    letters = policy.tokenizer(f"a red {spelling} circle", split_special_tokens=True)["input_ids"]
    ids = torch.tensor([letters])
    (plan,) = policy.read_plans(ids, torch.ones_like(ids, dtype=torch.bool))
    assert spelling in plan
    policy.begin_of_image_id = policy.tokenizer.convert_tokens_to_ids(BOI)
    (row,) = rows(policy.image_context(["a red circle"], [plan]))
    (plain,) = rows(policy.image_context(["a red circle"], ["a red circle"]))
    special = marks(policy.tokenizer)
    assert [one for one in row if one in special] == [one for one in plain if one in special]
