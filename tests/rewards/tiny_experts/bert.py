"""A tiny BERT tokenizer."""

from __future__ import annotations

import string

from transformers import BertTokenizer

# GroundingDINO knows its marks by the ids they have in BERT's vocabulary.
BERT_IDS = {"[PAD]": 0, "[UNK]": 100, "[CLS]": 101, "[SEP]": 102, "[MASK]": 103, ".": 1012, "?": 1029}
WORDS = ("yes", "no", "dog", "hot", "cat", "red", "blue", "left", "chair")
SIZE = 1100


def vocabulary() -> dict[str, int]:
    """A WordPiece vocabulary that spells every English word: letters, digits, a few whole words."""
    signs = [*string.ascii_lowercase, *string.digits, "'", "-", ",", "&", "/"]
    pieces = [*signs, *(f"##{sign}" for sign in string.ascii_lowercase + string.digits), *WORDS]
    ids = dict(BERT_IDS)
    ids |= {piece: 200 + place for place, piece in enumerate(pieces)}
    taken = set(ids.values())
    return ids | {f"[unused{i}]": i for i in range(SIZE) if i not in taken}


def bert_tokenizer() -> BertTokenizer:
    """A lower-casing BERT tokenizer over `vocabulary`."""
    return BertTokenizer(vocab=vocabulary())
