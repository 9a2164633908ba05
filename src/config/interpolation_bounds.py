"""A bound on what a config's interpolations may grow to: forty lines of ``${a}${a}`` stand for 2^40 texts.

OmegaConf resolves a reference anew wherever it is named, and Hydra makes it do so while configs are still merged,
before any check of ours can see them. So the work is counted where it is done: in the two methods that every
interpolation goes through.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from omegaconf.base import Container, Node

from src.config.errors import UserError

MAX_LOOKUPS = 2000  # composing and checking a training run takes some 20
MAX_CHARACTERS = 2**22  # of all texts that were looked up
MAX_CHAIN = 20  # references to references; Python's own limit would be met at some hundred


class _OutOfBounds(BaseException):
    """Not an Exception: OmegaConf wraps those, or goes on without them."""


@dataclass(slots=True)
class _Count:
    """What was looked up so far, and how many references to references the one at hand stands behind."""

    lookups: int = 0
    characters: int = 0
    chain: int = 0

    def add(self, text: Any) -> None:
        self.lookups += 1
        self.characters += len(text) if isinstance(text, str) else 0
        if self.chain > MAX_CHAIN or self.lookups > MAX_LOOKUPS or self.characters > MAX_CHARACTERS:
            raise _OutOfBounds


@contextmanager
def bounded(whole: bool = True) -> Iterator[None]:
    """Bound every interpolation that is resolved inside the ``with`` block.

    whole: bound them together; else each for itself, for a block that goes on for as long as it likes.

    Raises:
        UserError: naming key and text of the interpolation that goes beyond, and its file where it came from one.
    """
    count = _Count()
    resolve, follow = Container.resolve_parse_tree, Container._resolve_node_interpolation

    def counted_resolve(self: Container, parse_tree: Any, node: Any, *args: Any, **named: Any) -> Any:
        if count.chain == 0 and not whole:
            count.lookups = count.characters = 0
        count.chain += 1
        try:
            count.add(None)
            return resolve(self, parse_tree, node, *args, **named)
        except _OutOfBounds as error:
            error.args = error.args or (_place(node),)
            raise
        finally:
            count.chain -= 1

    def counted_follow(self: Container, inter_key: str, memo: Any) -> Any:
        found = follow(self, inter_key, memo)
        count.add(found._value() if isinstance(found, Node) else None)
        return found

    Container.resolve_parse_tree = counted_resolve  # type: ignore[method-assign]
    Container._resolve_node_interpolation = counted_follow  # type: ignore[assignment,method-assign]
    try:
        yield
    except _OutOfBounds as error:
        raise UserError(
            f"{error}: stands for more than a config can hold, by way of other keys; write the value out"
        ) from None
    except RecursionError:
        raise UserError(
            "the config goes too deep: lists or sections within each other, or a ${...} that names its own section"
            "; write it flatter"
        ) from None
    finally:
        Container.resolve_parse_tree = resolve  # type: ignore[method-assign]
        Container._resolve_node_interpolation = follow  # type: ignore[method-assign]


def _place(node: Any) -> str:
    from src.config.sources import file_with

    text, key = str(node._value()), node._get_full_key(None)
    file = file_with(text)
    return f"{'' if file is None else f'{file}: '}{key}={text if len(text) <= 60 else f'{text[:60]}...'}"


DOLLAR = re.compile(r"(\\*)\$\{")


def escaped(value: Any) -> Any:
    """Plain data for a config node, with ``${`` in its texts kept from being looked up."""
    if isinstance(value, Mapping):
        return {key: escaped(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [escaped(inner) for inner in value]
    # Backslashes in front of it would count as escapes, too.
    return DOLLAR.sub(lambda found: found[1] * 2 + r"\${", value) if isinstance(value, str) else value
