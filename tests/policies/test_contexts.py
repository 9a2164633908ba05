"""Prompt and plan as token contexts: templates, the full stop, the begin-of-image token, the guidance branch."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from src.policies.contexts import image_texts, left_padded, plan_texts, unconditional_context
from src.policies.janus import begin_of_image_id
from tests.policies.tiny import SPECIAL, templated_tokenizer, tiny_janus, tiny_policy, tiny_tokenizer

BOS = SPECIAL["bos_token"]


@pytest.mark.parametrize(
    ("prompt", "plan", "expected"),
    [
        ("a red circle", "red one", "a red circle. red one"),
        ("a red circle.", "red one", "a red circle. red one"),
        ("a red circle. ", " red one ", "a red circle. red one"),
        ("a red circle .", "red one", "a red circle. red one"),
        ("a red circle", "", "a red circle"),
        ("a red circle.", "", "a red circle."),
        ("a red circle.", "   ", "a red circle."),
        ("is it 1.5 m?", "yes", "is it 1.5 m?. yes"),
    ],
)
def test_prompt_and_plan_join_with_one_full_stop(prompt: str, plan: str, expected: str) -> None:
    """METHOD.md, stage 2: user content is "{prompt}. {plan}"; the layout around it is Janus-Pro's."""
    (text,) = image_texts(tiny_tokenizer(), [prompt], [plan])
    assert text.startswith(f"{BOS}<|User|>: ")
    assert text.removeprefix(f"{BOS}<|User|>: ").removesuffix("<|Assistant|>:").rstrip("\n") == expected


@pytest.mark.parametrize("plan", ["red one", ""])
def test_the_published_image_layout_separates_turns_by_a_blank_line(plan: str) -> None:
    """Janus-Pro's "deepseek" format joins turns with two newlines; it was never trained on anything else."""
    (text,) = image_texts(tiny_tokenizer(), ["a red circle"], [plan])
    content = "a red circle. red one" if plan else "a red circle"
    assert text == f"{BOS}<|User|>: {content}\n\n<|Assistant|>:"


def test_without_templates_of_its_own_a_checkpoint_gets_the_published_layout() -> None:
    (text,) = plan_texts(tiny_tokenizer(), ["two cats on a sofa"])
    assert text.startswith(
        BOS + "You are a helpful assistant that receives an image prompt and generate a visualization of the prompt."
        "\n\n<|User|>: "
    )
    assert '"two cats on a sofa"' in text
    assert "50 words" in text
    assert text.endswith("\n\n<|Assistant|>:")


def test_the_templates_of_the_checkpoint_win() -> None:
    tokenizer = templated_tokenizer()
    assert plan_texts(tokenizer, ["a red circle"]) == [f"{BOS} a red circle ->"]
    assert image_texts(tokenizer, ["a red circle."], ["red one"]) == [f"{BOS} a red circle . red one ->"]
    assert image_texts(tokenizer, ["a red circle"], [""]) == [f"{BOS} a red circle ->"]


@pytest.mark.parametrize(
    "prompt", ["{{ 7*7 }} {% raw %}", "quotes \" and ' in it", "Ein rotes Quadrat, größer: (1) 漢字"]
)
def test_a_prompt_is_data_never_template(prompt: str) -> None:
    assert prompt in plan_texts(tiny_tokenizer(), [prompt])[0]
    assert f"{prompt}. {prompt}" in image_texts(tiny_tokenizer(), [prompt], [prompt])[0]


def test_contexts_begin_and_end_where_they_should() -> None:
    policy = tiny_policy()
    prompts, plans = ["a red circle", "two blue square left of a green circle"], ["the red circle", ""]
    boi, bos = policy.tokenizer.convert_tokens_to_ids("<begin_of_image>"), policy.tokenizer.bos_token_id
    image = policy.image_context(prompts, plans)
    plan = policy.plan_context(prompts)
    assert image.ids[:, -1].tolist() == [boi, boi]
    assert boi not in plan.ids
    for context in (plan, image):
        for ids, mask in zip(context.ids, context.mask, strict=True):
            assert mask[-1]
            assert ids[mask][0] == bos
            assert (ids[mask] == bos).sum() == 1, "no second begin-of-sequence from the tokenizer"
            assert (mask.int().diff() >= 0).all(), "padding stands on the left"
    words = policy.tokenizer.convert_ids_to_tokens(image.ids[0][image.mask[0]].tolist())
    assert words[1:] == "a red circle . the red circle -> <begin_of_image>".split()


def test_begin_of_image_comes_from_the_generation_config_where_it_says_so() -> None:
    janus, tokenizer = tiny_janus(), tiny_tokenizer()
    assert begin_of_image_id(janus, tokenizer) == tokenizer.convert_tokens_to_ids("<begin_of_image>") == 4
    janus.generation_config.generation_kwargs = {"boi_token_id": 17}
    assert begin_of_image_id(janus, tokenizer) == 17


@given(st.lists(st.integers(2, 9), min_size=1, max_size=6), st.integers(0, 3))
def test_the_guidance_branch_is_bos_pads_boi_whatever_stands_beside_it(lengths: list[int], seed: int) -> None:
    """METHOD.md: every token between BOS and begin-of-image becomes the pad token; padding never enters."""
    pad, generator = 2, torch.Generator().manual_seed(seed)
    rows = [[0, *torch.randint(5, 30, (n - 2,), generator=generator).tolist(), 4] for n in lengths]
    together = unconditional_context(left_padded(rows, pad), pad)
    for row, length in enumerate(lengths):
        assert together.ids[row][together.mask[row]].tolist() == [0] + [pad] * (length - 2) + [4]
        alone = unconditional_context(left_padded([rows[row]], pad), pad)
        assert alone.ids[0].tolist() == together.ids[row][together.mask[row]].tolist()
        assert bool(alone.mask.all())


def test_plans_are_read_without_special_tokens_and_padding() -> None:
    policy = tiny_policy()
    word = dict(policy.tokenizer.get_vocab().items())
    ids = torch.tensor(
        [
            [word["red"], word["circle"], policy.end_id, policy.end_id],
            [word["blue"], policy.pad_id, word["square"], word["left"]],
            [policy.end_id] * 4,
        ]
    )
    mask = torch.tensor([[True, True, True, False], [True] * 4, [True, False, False, False]])
    assert policy.read_plans(ids, mask) == ["red circle", "blue square left", ""]
