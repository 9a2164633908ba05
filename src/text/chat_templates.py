"""A checkpoint's chat templates, which are programs: run once, in a child with limits, then filled in as plain text.

It is rendered once with marks in place of the users' words, in a process that the kernel ends after some
seconds (`src.text.bounded_work`). What is left are pieces of text with the words between them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from src.text.bounded_work import Stopped, answered

LONGEST = 100_000  # letters that a template may write
# Words with everything that a template might change: case, quotes, line breaks, what HTML and JSON escape.
PROBE = 'A "Red" Circle & 2\n\\blue\\ {{ squares }} <b>it\'s</b>; größer, 漢字'
_MARK = re.compile("\ue0f0(\\w+)\ue0f1")


class TemplateError(ValueError):
    """A chat template cannot be used; the message says why, not which one."""


@dataclass(frozen=True, slots=True)
class FlatTemplate:
    """What a template writes: pieces of text, and between them the names of the words that go there.

    pieces: text, name, text, name, ..., text.
    """

    pieces: tuple[str, ...]

    def fill(self, words: Mapping[str, str]) -> str:
        """The text with `words` in their places."""
        return "".join(words[piece] if place % 2 else piece for place, piece in enumerate(self.pieces))


def flatten(
    template: str, names: Sequence[str], variables: Callable[[Mapping[str, str]], dict[str, Any]]
) -> FlatTemplate:
    """`template` as pieces of text around the words `names`.

    variables: the template's variables (JSON-like) with given words in them. The first of `names` must be written.

    Raises:
        TemplateError: if the template is damaged, exceeds a limit, or does not write the words as they are.
    """
    marks = {name: f"\ue0f0{name}\ue0f1" for name in names}
    probes = dict.fromkeys(names, PROBE)
    asked = json.dumps([variables(marks), variables(probes)], default=str)
    marked, probed = render(template, asked)
    flat = FlatTemplate(tuple(_MARK.split(marked)))
    if not set(flat.pieces[1::2]) <= set(names) or flat.fill(probes) != probed:
        raise TemplateError(
            "changes the words it is given, or what it writes depends on them; expected a template that writes them"
            " as they are"
        )
    if names[0] not in flat.pieces[1::2]:
        raise TemplateError(f"does not write the {names[0]}")
    return flat


@lru_cache(maxsize=64)
def render(template: str, variables: str) -> tuple[str, ...]:
    """The texts of a template for each element of the JSON list `variables`, within limits of time, memory and length.

    Raises:
        TemplateError: if it cannot be rendered, or exceeds a limit.
    """
    try:
        answer = answered("render", template=template, variables=json.loads(variables), longest=LONGEST)
    except Stopped as error:
        raise TemplateError(str(error)) from None
    return tuple(answer["texts"])
