"""Pictures of the drawn world as image tokens, and its words as a tokenizer.

An image token is one of the distinct 4x4 patches that occur in drawings. In the small world they are four for each of
the twelve objects and the empty one, 49 in all, and 6x6 of them, row by row, make a picture; in the large one 12x12.
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
from src.shapes.scenes import cell_templates
from src.shapes.wordings import forms
from src.shapes.worlds import SMALL, World

PATCH_PIXELS = 4

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


@lru_cache
def _codes(world: World) -> tuple[Tensor, Tensor]:
    patches = _to_patches(cell_templates(world))
    codes, table = torch.unique(patches.flatten(0, 1), dim=0, return_inverse=True)
    return codes, table.view(patches.shape[:2])


def grid_tokens(world: World = SMALL) -> int:
    """Image tokens in a row of a picture, and rows."""
    return world.image_pixels // PATCH_PIXELS


def image_tokens(world: World = SMALL) -> int:
    """Image tokens T of a picture."""
    return grid_tokens(world) ** 2


def code_patches(world: World = SMALL) -> Tensor:
    """The patch each image token stands for: (V, 3, 4, 4) float32 in [0, 1]; V is 49 in the small world."""
    return _codes(world)[0].view(-1, 3, PATCH_PIXELS, PATCH_PIXELS)


def labels_to_tokens(labels: Tensor, world: World = SMALL) -> Tensor:
    """Cell numbers (N, C) -> image tokens (N, T), both int64."""
    per_cell = world.cell_pixels // PATCH_PIXELS
    cells = _codes(world)[1][labels].view(-1, world.grid, world.grid, per_cell, per_cell)
    return cells.permute(0, 1, 3, 2, 4).reshape(labels.shape[0], image_tokens(world))


def tokens_to_pixels(tokens: Tensor, world: World = SMALL) -> Tensor:
    """What any grid of image tokens (N, T) stands for: pixels (N, 3, H, H) float32 in [0, 1]."""
    side = grid_tokens(world)
    grid = code_patches(world)[tokens].view(-1, side, side, 3, PATCH_PIXELS, PATCH_PIXELS)
    return grid.permute(0, 3, 1, 4, 2, 5).reshape(tokens.shape[0], 3, world.image_pixels, world.image_pixels)


def world_words(world: World = SMALL) -> list[str]:
    """Every word and mark of prompts and plans, sorted; a place word before a ";" is a word of its own."""
    separated = (place + SEPARATOR for place in world.places)
    words = {*world.colors, *world.bitmaps, *world.places, *separated, ".", ","}
    for form in forms(world).values():
        for params in form.combinations():
            for text in form.wordings(params):
                words.update(_WORD.findall(text))
    return sorted(words)


def build_tokenizer(world: World = SMALL) -> PreTrainedTokenizerFast:
    """A word-level tokenizer of the drawn world in the interface of Janus-Pro's, with its special tokens.

    Upper case is folded, unknown words become one unknown token; decoding joins words by spaces.
    """
    vocabulary = {word: index for index, word in enumerate((*SPECIAL_TOKENS, *world_words(world)))}
    backend = Tokenizer(WordLevel(vocabulary, unk_token=UNK))
    backend.normalizer = Lowercase()
    separated = "(?:" + "|".join(sorted(world.places, key=len, reverse=True)) + ")" + SEPARATOR
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
