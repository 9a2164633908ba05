"""Pictures of the drawn world as image tokens, and its words as a tokenizer.

An image token is one of the distinct 4x4 patches that occur in drawings: four for each of the twelve
objects and the empty one, 49 in all. 6x6 of them, row by row, make a picture.
"""

from __future__ import annotations

import re
from functools import lru_cache

import torch
from tokenizers import AddedToken, Regex, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.normalizers import Lowercase
from tokenizers.pre_tokenizers import Split
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from src.shapes.grammar import SEPARATOR
from src.shapes.scenes import BITMAPS, CELL_PIXELS, COLORS, GRID, IMAGE_PIXELS, PLACES, cell_templates
from src.shapes.wordings import FORMS

PATCH_PIXELS = 4
GRID_TOKENS = IMAGE_PIXELS // PATCH_PIXELS
IMAGE_TOKENS = GRID_TOKENS * GRID_TOKENS

BOS, EOS, PAD, UNK = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜▁pad▁｜>", "<|unknown|>"
BOI, EOI, IMAGE = "<begin_of_image>", "<end_of_image>", "<image_placeholder>"
USER, ASSISTANT = "<|User|>", "<|Assistant|>"
SPECIAL_TOKENS = (BOS, EOS, PAD, UNK, BOI, EOI, IMAGE, USER, ASSISTANT)

#: The two levels' contexts, as short as they can be: a tiny model on a CPU pays for every token.
PLAN_TEMPLATE = "{{ bos_token }}{{ messages[0]['content'] }}" + ASSISTANT
IMAGE_TEMPLATE = "{{ bos_token }}{{ messages[0]['content'] }}{% if plan %}. {{ plan }}{% endif %}"
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'user' %}{{ message['content'] }}" + ASSISTANT + "{% else %}{{ message['content'] }}"
    "{{ eos_token }}{% endif %}{% endfor %}"
)

_WORD = re.compile(r"[a-z]+(?:-[a-z]+)*|[.,!?:]")


def _to_patches(images: Tensor) -> Tensor:
    """Images (N, 3, H, W) -> patches (N, H/4 * W/4, 48), row by row."""
    patches = images.unfold(2, PATCH_PIXELS, PATCH_PIXELS).unfold(3, PATCH_PIXELS, PATCH_PIXELS)
    return patches.permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)


@lru_cache(maxsize=1)
def _codes() -> tuple[Tensor, Tensor]:
    patches = _to_patches(cell_templates())
    codes, table = torch.unique(patches.flatten(0, 1), dim=0, return_inverse=True)
    return codes, table.view(patches.shape[:2])


def code_patches() -> Tensor:
    """The patch each image token stands for: (49, 3, 4, 4) float32 in [0, 1]."""
    return _codes()[0].view(-1, 3, PATCH_PIXELS, PATCH_PIXELS)


def labels_to_tokens(labels: Tensor) -> Tensor:
    """Cell numbers (N, 9) -> image tokens (N, 36), both int64."""
    per_cell = CELL_PIXELS // PATCH_PIXELS
    cells = _codes()[1][labels].view(-1, GRID, GRID, per_cell, per_cell)
    return cells.permute(0, 1, 3, 2, 4).reshape(labels.shape[0], IMAGE_TOKENS)


def tokens_to_pixels(tokens: Tensor) -> Tensor:
    """What any grid of image tokens (N, 36) stands for: pixels (N, 3, 24, 24) float32 in [0, 1]."""
    grid = code_patches()[tokens].view(-1, GRID_TOKENS, GRID_TOKENS, 3, PATCH_PIXELS, PATCH_PIXELS)
    return grid.permute(0, 3, 1, 4, 2, 5).reshape(tokens.shape[0], 3, IMAGE_PIXELS, IMAGE_PIXELS)


def world_words() -> list[str]:
    """Every word and mark of prompts and plans, sorted; a place word before a ";" is a word of its own."""
    words = {*COLORS, *BITMAPS, *PLACES, *(place + SEPARATOR for place in PLACES), ".", ","}
    for form in FORMS:
        for params in form.combinations():
            for text in form.wordings(params):
                words.update(_WORD.findall(text))
    return sorted(words)


def build_tokenizer() -> PreTrainedTokenizerFast:
    """A word-level tokenizer of the drawn world in the interface of Janus-Pro's, with its special tokens.

    Upper case is folded, unknown words become one unknown token; decoding joins words by spaces.
    """
    vocabulary = {word: index for index, word in enumerate((*SPECIAL_TOKENS, *world_words()))}
    backend = Tokenizer(WordLevel(vocabulary, unk_token=UNK))
    backend.normalizer = Lowercase()
    separated = "(?:" + "|".join(sorted(PLACES, key=len, reverse=True)) + ")" + SEPARATOR
    pattern = Regex(rf"{separated}|[a-z]+(?:-[a-z]+)*|[0-9]+|[^\sa-z0-9]")
    backend.pre_tokenizer = Split(pattern, behavior="removed", invert=True)
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        unk_token=UNK,
        extra_special_tokens={"boi_token": BOI, "eoi_token": EOI, "image_token": IMAGE},
        padding_side="left",
        clean_up_tokenization_spaces=False,
        chat_template={"default": CHAT_TEMPLATE, "plan": PLAN_TEMPLATE, "image": IMAGE_TEMPLATE},
        model_max_length=256,
    )
