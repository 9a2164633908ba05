"""A byte-level BPE tokenizer of Janus-Pro's kind, trained on a few sentences."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

BOS, EOS, PAD = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜▁pad▁｜>"
BOI, EOI, IMAGE = "<begin_of_image>", "<end_of_image>", "<image_placeholder>"
USER, ASSISTANT = "<|User|>", "<|Assistant|>"
SPELLINGS = (BOS, EOS, PAD, BOI, EOI, IMAGE, USER, ASSISTANT)
SENTENCES = (
    "You are a helpful assistant that receives an image prompt and generate a visualization of the prompt.",
    "Here is the prompt of an image to be generated: a red circle left of a blue square. Describe the image.",
    "a photo of three dogs and a green bench, below a purple umbrella; an image placeholder for the user",
)


@lru_cache
def byte_level_tokenizer(role_marks_are_special: bool = True) -> Any:
    """With Janus-Pro's special tokens; DeepSeek's later files call the role marks ordinary added tokens."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.train_from_iterator(
        SENTENCES * 4,
        trainers.BpeTrainer(vocab_size=420, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False),
    )
    backend.add_special_tokens([AddedToken(text, normalized=False) for text in SPELLINGS[:6]])
    backend.add_tokens(
        [AddedToken(text, normalized=False, special=role_marks_are_special) for text in (USER, ASSISTANT)]
    )
    # As in DeepSeek's files: letters that were added later. They are words.
    backend.add_tokens([AddedToken(text, normalized=False) for text in "øöú"])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token=BOS, eos_token=EOS, pad_token=PAD, clean_up_tokenization_spaces=False
    )
