"""What a text given as words must not contain."""

from __future__ import annotations

import re

# Control characters without tab and the line breaks, and halves of characters, which JSON and a terminal can spell.
_UNFIT = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f\ud800-\udfff]")


def problem_of(text: str) -> str | None:
    """What is wrong with a text as words, None if nothing: it is empty, or contains control characters."""
    if not text.strip():
        return "is empty"
    found = _UNFIT.search(text)
    if found is None:
        return None
    kind = "half a character (a lone surrogate)" if "\ud800" <= found[0] <= "\udfff" else "the control character"
    return f"holds {kind} U+{ord(found[0]):04X} as its letter {found.start() + 1}"
