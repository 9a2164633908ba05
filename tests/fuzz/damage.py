"""Strategies that several fuzz tests share: JSON of any kind, and bytes that were right once."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

# Lone surrogates, too: JSON can write them, UTF-8 cannot.
texts = st.text(st.characters(), max_size=12) | st.sampled_from(["\ud800", "\0", "é", "../..", "a" * 300, "﻿", " "])
numbers = st.integers() | st.floats() | st.sampled_from([10**4200, -(10**20), 2**63, 0, -1, float("nan"), float("inf")])
json_values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | numbers | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=8,
)
EDITS = st.lists(
    st.tuples(st.sampled_from(["set", "cut", "insert", "repeat"]), st.floats(0, 1), st.binary(min_size=1, max_size=6)),
    min_size=1,
    max_size=5,
)


def damaged(content: bytes, edits: list[tuple[str, float, bytes]]) -> bytes:
    """`content` after some edits at places given as shares of its length."""
    for kind, share, some in edits:
        place = int(share * len(content))
        if kind == "set":
            content = content[:place] + some + content[place + len(some) :]
        elif kind == "cut":
            content = content[:place] + content[place + 8 * len(some) :]
        elif kind == "insert":
            content = content[:place] + some + content[place:]
        else:
            content = content[:place] + content[place : place + 64] * (1 + some[0] % 4) + content[place:]
    return content
