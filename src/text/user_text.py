"""Users' words and a tokenizer's special tokens: words that spell one stay words.

A tokenizer reads ``<image_placeholder>`` in any text as the special token. In the words of a user, or in a plan that a
model wrote, such a spelling is broken up by a space before it is put into a template: ``< image_placeholder>``. All
other texts, and their tokens, stay exactly as they are.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

# Added tokens that a tokenizer file does not call special, but that stand for no words: role marks and the like.
_MARK = re.compile(r"<.+>|\[.+\]", re.DOTALL)
ROUNDS, GENTLE = 64, 32
NEUTRAL = "a"


def as_words(tokenizer: Any, texts: Sequence[str], more: Sequence[str] = ()) -> list[str]:
    """`texts` with every spelling of a special token broken up; a text without one is returned as it is.

    more: spellings with a meaning besides the tokenizer's own, such as a processor's image token.

    Raises:
        ValueError: for a text that cannot be told apart from special tokens.
    """
    spelled = _pattern(frozenset(_spellings(tokenizer)) | frozenset(filter(None, more)))
    words = [_broken(spelled, text) for text in texts]
    if not getattr(tokenizer, "is_fast", False):
        return words
    # A normaliser may make a special token of another spelling (CLIP's folds case): what comes out decides.
    control = control_ids(tokenizer)
    waiting = [place for place, text in enumerate(words) if text]
    for number in range(ROUNDS):
        waiting = _mend(tokenizer, control, words, waiting, gently=number < GENTLE)
        if not waiting:
            return words
    raise ValueError(
        f"{_short(texts[waiting[0]])}: cannot be told apart from the tokenizer's special tokens; reword it"
    )


def filled(
    tokenizer: Any, fill: Callable[..., str], rows: Sequence[tuple[str, ...]], more: Sequence[str] = ()
) -> list[str]:
    """``fill(*row)`` for every row of users' words, in which only what `fill` adds is a special token.

    Words may also form a special token with the text around them: those get a space on either side.

    Raises:
        ValueError: for words that cannot be told apart from special tokens.
    """
    flat = iter(as_words(tokenizer, [text for row in rows for text in row], more))
    words = [tuple(next(flat) for _ in row) for row in rows]
    texts = [fill(*row) for row in words]
    own = {filled: fill(*(NEUTRAL if one else "" for one in filled)) for filled in {_which(row) for row in words}}
    found, expected = _controls(tokenizer, texts), dict(zip(own, _controls(tokenizer, list(own.values())), strict=True))
    for place, row in enumerate(words):
        if found[place] == expected[_which(row)]:
            continue
        texts[place] = fill(*(f" {text} " if text else "" for text in row))
        if _controls(tokenizer, texts[place : place + 1])[0] != expected[_which(row)]:
            raise ValueError(f"{_short(rows[place][0])}: forms special tokens with the text around it; reword it")
    return texts


def control_ids(tokenizer: Any) -> frozenset[int]:
    """The ids of a tokenizer's special tokens and marks, without the one for words that it does not know."""
    ids = {int(number) for number, token in _added(tokenizer).items() if _is_control(token)}
    ids |= {int(number) for number in getattr(tokenizer, "all_special_ids", ())}
    roles = ("bos", "eos", "pad", "cls", "sep", "mask")
    unknown = getattr(tokenizer, "unk_token_id", None)
    # CLIP's and GPT-2's is their end of text.
    if unknown not in {getattr(tokenizer, f"{role}_token_id", None) for role in roles}:
        ids.discard(unknown)  # type: ignore[arg-type]
    return frozenset(ids)


def _added(tokenizer: Any) -> dict[int, Any]:
    return getattr(tokenizer, "added_tokens_decoder", None) or {}


def _is_control(token: Any) -> bool:
    return bool(getattr(token, "special", True)) or _MARK.fullmatch(str(token)) is not None


def _spellings(tokenizer: Any) -> set[str]:
    added = {str(token) for token in _added(tokenizer).values() if _is_control(token)}
    return {text for text in added | set(getattr(tokenizer, "all_special_tokens", ())) if text.strip()}


@lru_cache(maxsize=32)
def _pattern(spellings: frozenset[str]) -> re.Pattern[str] | None:
    if not spellings:
        return None
    return re.compile("|".join(map(re.escape, sorted(spellings, key=lambda one: (-len(one), one)))))


def _broken(spelled: re.Pattern[str] | None, text: str) -> str:
    """`text` without any spelling; one that a space has made is broken up again."""
    for _ in range(ROUNDS):
        if spelled is None or spelled.search(text) is None:
            return text
        text = spelled.sub(lambda match: _split(match[0]), text)
    raise ValueError(f"{_short(text)}: cannot be told apart from the tokenizer's special tokens; reword it")


def _split(spelling: str) -> str:
    """The spelling with a space behind its first letter; one of a single letter is left out."""
    return f"{spelling[0]} {spelling[1:]}" if len(spelling) > 1 else " "


def _mend(tokenizer: Any, control: frozenset[int], words: list[str], waiting: list[int], gently: bool) -> list[int]:
    """Break up, in place, what is still read as a special token; the places of the texts to look at again."""
    if not waiting:
        return []
    read = tokenizer(
        [words[place] for place in waiting], add_special_tokens=False, return_offsets_mapping=True, verbose=False
    )
    again = []
    for place, ids, spans in zip(waiting, read["input_ids"], read["offset_mapping"], strict=True):
        text = words[place]
        for start, end in sorted({tuple(span) for id_, span in zip(ids, spans, strict=True) if id_ in control})[::-1]:
            found = text[start:end]
            core = found.strip()
            text = text[:start] + (found.replace(core, _split(core)) if gently and core else " ") + text[end:]
        if text != words[place]:
            words[place] = text
            again.append(place)
    return again


def _which(row: tuple[str, ...]) -> tuple[bool, ...]:
    return tuple(bool(text) for text in row)


def _controls(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """The special ids of each text, in order."""
    if not texts:
        return []
    control = control_ids(tokenizer)
    rows = tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
    return [[id_ for id_ in row if id_ in control] for row in rows]


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:57] + "...")
