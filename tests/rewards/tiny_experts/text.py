"""Tiny tokenizers of the real classes, and prompts of different lengths for them."""

from __future__ import annotations

from pathlib import Path

from transformers import CLIPTokenizer, Qwen2Tokenizer

from src.values import PromptRecord

PROMPTS = ("a cat", "a red cat on a mat", "two dogs", "a dog left of the cat", "a cat.")


def prompts(count: int) -> list[PromptRecord]:
    """`count` records: prompts of different lengths, some of them twice."""
    return [PromptRecord(PROMPTS[i % len(PROMPTS)]) for i in range(count)]


def byte_symbols() -> list[str]:
    """GPT-2's printable symbol of each byte (its published table: shifted where a byte has no glyph)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    table = {byte: chr(byte) for byte in printable}
    for shift, byte in enumerate(byte for byte in range(256) if byte not in table):
        table[byte] = chr(256 + shift)
    return [table[byte] for byte in range(256)]


def clip_tokenizer(folder: Path) -> CLIPTokenizer:
    """CLIP's tokenizer over bytes with a few words; start and end of text are the last two ids, as published."""
    symbols = byte_symbols()
    merges = [("c", "a"), ("ca", "t</w>"), ("d", "o"), ("do", "g</w>")]
    words = [*symbols, *(symbol + "</w>" for symbol in symbols), *(a + b for a, b in merges)]
    vocabulary = {word: place for place, word in enumerate([*words, "<|startoftext|>", "<|endoftext|>"])}
    tokenizer = CLIPTokenizer(vocab=vocabulary, merges=merges)
    tokenizer.save_pretrained(folder)
    return tokenizer


def qwen_tokenizer(folder: Path | None = None) -> Qwen2Tokenizer:
    """Qwen2's tokenizer over bytes with "yes" and "no" as tokens, both with and without a space."""
    merges = [("y", "e"), ("ye", "s"), ("n", "o"), ("Ġ", "yes"), ("Ġ", "no")]
    words = [*byte_symbols(), *(a + b for a, b in merges)]
    tokenizer = Qwen2Tokenizer(vocab={word: place for place, word in enumerate(words)}, merges=merges)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    if folder is not None:
        tokenizer.save_pretrained(folder)
    return tokenizer
