"""What a benchmark is made of: items to paint, files to paint them into."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any


@dataclass(frozen=True, slots=True)
class Item:
    """A prompt; `name` is unique in its benchmark and keys its seeds, `place` is its file and line."""

    name: str
    prompt: str
    category: str
    metadata: Mapping[str, Any] = field(default_factory=dict)
    place: str = field(default="", compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class ImageFile:
    """A file below the output folder: one sample of an item, or several in a grid of two columns, row by row."""

    path: PurePosixPath
    item: Item
    samples: tuple[int, ...]


def no_documents(_: Sequence[Item]) -> dict[PurePosixPath, str]:
    """Of a layout that has images only."""
    return {}


@dataclass(frozen=True, slots=True)
class Benchmark:
    """How one benchmark's prompts are read and where its scorer looks for images.

    samples: images a prompt its scorer is made for. most: how many it can read; None: any number.
    read: from the path of the user's copy to the items; raises PromptDataError for anything else.
    files: (items, images a prompt, name of the model) to the files, in the order they are painted.
    documents: text files next to the images.
    """

    name: str
    samples: int
    most: int | None
    read: Callable[[Path], tuple[Item, ...]]
    files: Callable[[Sequence[Item], int, str], list[ImageFile]]
    documents: Callable[[Sequence[Item]], dict[PurePosixPath, str]] = no_documents
