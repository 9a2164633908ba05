"""GenEval (arXiv 2310.11513): ``00000/metadata.jsonl``, ``00000/samples/00000.png``; read from djghosh13/geneval."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from src.benchmark_images.items import Benchmark, ImageFile, Item
from src.benchmark_images.reading import existing, json_lines
from src.data.records import PromptDataError
from src.geneval.requirements import parse_requirements

PROMPTS = "evaluation_metadata.jsonl"


def read(path: Path) -> tuple[Item, ...]:
    """The items of evaluation_metadata.jsonl, or of the folder it is in; a line's number is its folder's."""
    file = existing(path, f"GenEval's {PROMPTS}")
    if file.is_dir():
        file = existing(file / PROMPTS, f"GenEval's {PROMPTS} in that folder")
    items = []
    for number, (value, where) in enumerate(json_lines(file)):
        try:
            wanted = parse_requirements(value, where)
        except ValueError as error:
            raise PromptDataError(str(error)) from error
        items.append(Item(f"{number:05d}", wanted.prompt, wanted.tag, wanted.metadata, where))
    return tuple(items)


def files(items: Sequence[Item], n: int, model_name: str) -> list[ImageFile]:
    """Numbers of five digits, as the released generation script writes them."""
    return [
        ImageFile(PurePosixPath(item.name, "samples", f"{sample:05d}.png"), item, (sample,))
        for item in items
        for sample in range(n)
    ]


def documents(items: Sequence[Item]) -> dict[PurePosixPath, str]:
    """The prompt's own line next to its samples."""
    return {PurePosixPath(item.name, "metadata.jsonl"): json.dumps(item.metadata) for item in items}


BENCHMARK = Benchmark("geneval", samples=4, most=None, read=read, files=files, documents=documents)
