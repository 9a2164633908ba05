"""From prompts and plans to token contexts, with the chat templates of the checkpoint.

A checkpoint may ship two named chat templates, ``plan`` and ``image`` (``additional_chat_templates/``
of its tokenizer); if it does not, like the published Janus-Pro, the templates of this file are used.
Both receive one user message; the image template also the variable ``plan``. A template writes the whole
text including the begin-of-sequence token, and prompt and plan as they are; the begin-of-image token is appended here.
It is rendered once, within limits (`src.text.chat_templates`). Special tokens come from the template alone: a
prompt or plan that spells one is read as words (`src.text.user_text`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from src.text.chat_templates import FlatTemplate, TemplateError, flatten
from src.text.user_text import filled
from src.values import IMAGE, PLAN, TokenContext

# The layout of Janus-Pro's supervised data ("deepseek" format), as T2I-R1 uses it: a system line, a user
# turn with the reasoning instruction (paper, appendix; reworded here), an empty assistant turn.
DEFAULT_PLAN_TEMPLATE = (
    "{{ bos_token }}You are a helpful assistant that receives an image prompt and generate a visualization"
    " of the prompt.\n\n"
    "<|User|>: Here is the prompt of an image to be generated: \"{{ messages[0]['content'] }}\"\n"
    "Describe the image briefly and precisely. Name every object of the prompt, with its colour, number,"
    " shape and texture where the prompt gives them, and how the objects stand to each other. Use at most"
    " 50 words and add nothing that the prompt does not say. Write the description only:\n\n"
    "<|Assistant|>:"
)
DEFAULT_IMAGE_TEMPLATE = (
    # An expression, not a block: transformers trims the newline behind a block.
    "{{ bos_token }}<|User|>: {{ messages[0]['content'] }}{{ '. ' ~ plan if plan else '' }}\n\n<|Assistant|>:"
)


def chat_template(tokenizer: Any, name: str, default: str) -> str:
    """The checkpoint's own template `name`, else `default`."""
    templates = getattr(tokenizer, "chat_template", None)
    if isinstance(templates, dict) and name in templates:
        return templates[name]
    return default


def check_templates(tokenizer: Any) -> None:
    """Render both templates once.

    Raises:
        TemplateError: for a template that cannot be used, with its name.
    """
    _flat(tokenizer, PLAN, DEFAULT_PLAN_TEMPLATE)
    for with_plan in (True, False):
        _flat(tokenizer, IMAGE, DEFAULT_IMAGE_TEMPLATE, with_plan)


def _flat(tokenizer: Any, name: str, default: str, with_plan: bool = False) -> FlatTemplate:
    """A template's text around "prompt" and, with one, "plan"; what is between them depends on whether there is one."""
    special = {key: str(token) for key, token in tokenizer.special_tokens_map.items() if isinstance(token, str)}

    def variables(words: Mapping[str, str]) -> dict[str, Any]:
        messages = [{"role": "user", "content": words["prompt"]}]
        plan = {"plan": words.get("plan", "")} if name == IMAGE else {}
        given = {"messages": messages, "tools": None, "documents": None, "add_generation_prompt": False}
        return {**special, **given, **plan}

    try:
        return flatten(
            chat_template(tokenizer, name, default), ("prompt", "plan") if with_plan else ("prompt",), variables
        )
    except TemplateError as error:
        raise TemplateError(f"chat template {name!r}: {error}") from error


def plan_texts(tokenizer: Any, prompts: Sequence[str]) -> list[str]:
    """The full text each plan continues."""
    flat = _flat(tokenizer, PLAN, DEFAULT_PLAN_TEMPLATE)
    return filled(tokenizer, lambda prompt: flat.fill({"prompt": prompt}), [(prompt.strip(),) for prompt in prompts])


def image_texts(tokenizer: Any, prompts: Sequence[str], plans: Sequence[str]) -> list[str]:
    """The full text each image continues, without the begin-of-image token.

    A prompt's final full stop is dropped, so "{prompt}. {plan}" never doubles it (1,783 of the
    released training prompts end in one). Empty plans leave the prompt alone.
    """
    flat = {
        with_plan: _flat(tokenizer, IMAGE, DEFAULT_IMAGE_TEMPLATE, with_plan)
        for with_plan in {bool(plan.strip()) for plan in plans}
    }

    def fill(prompt: str, plan: str) -> str:
        return flat[bool(plan)].fill({"prompt": prompt, "plan": plan})

    rows = [
        (prompt.strip().rstrip(".").rstrip() if plan.strip() else prompt.strip(), plan.strip())
        for prompt, plan in zip(prompts, plans, strict=True)
    ]
    return filled(tokenizer, fill, rows)


def left_padded(rows: Sequence[Sequence[int]], pad_id: int, device: torch.device | None = None) -> TokenContext:
    """Token lists of unequal length as one left-padded context."""
    width = max(len(row) for row in rows)
    ids = torch.full((len(rows), width), pad_id, dtype=torch.int64)
    mask = torch.zeros((len(rows), width), dtype=torch.bool)
    for i, row in enumerate(rows):
        ids[i, width - len(row) :] = torch.tensor(row, dtype=torch.int64)
        mask[i, width - len(row) :] = True
    return TokenContext(ids.to(device), mask.to(device))


def encode_plan_context(tokenizer: Any, prompts: Sequence[str], device: torch.device | None = None) -> TokenContext:
    """Contexts (N, C) of the plan level."""
    rows = tokenizer(plan_texts(tokenizer, prompts), add_special_tokens=False)["input_ids"]
    return left_padded(rows, tokenizer.pad_token_id, device)


def encode_image_context(
    tokenizer: Any,
    prompts: Sequence[str],
    plans: Sequence[str],
    begin_of_image_id: int,
    device: torch.device | None = None,
) -> TokenContext:
    """Contexts (N, C) of the image level, each ending in the begin-of-image token."""
    rows = tokenizer(image_texts(tokenizer, prompts, plans), add_special_tokens=False)["input_ids"]
    return left_padded([[*row, begin_of_image_id] for row in rows], tokenizer.pad_token_id, device)


def unconditional_context(context: TokenContext, pad_id: int) -> TokenContext:
    """The guidance branch: all between the first and the last real token becomes the pad token.

    Each row keeps its own length (padding tokens inside it are attended to, as in the released code),
    so the result does not depend on what else is in the batch.
    """
    ids, mask = context.ids, context.mask
    first = mask.to(torch.int8).argmax(dim=1, keepdim=True)
    column: Tensor = torch.arange(ids.shape[1], device=ids.device)[None, :]
    inner = (column > first) & (column < ids.shape[1] - 1)
    return TokenContext(torch.where(inner, torch.full_like(ids, pad_id), ids), mask)
