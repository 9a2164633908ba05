"""TIIF-Bench (arXiv 2506.02161): ``<type>/<model>/short_description/0.png``; read from A113N-W3I/TIIF-Bench."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

from src.benchmark_images.items import Benchmark, ImageFile, Item
from src.benchmark_images.reading import existing, json_lines, path_part, text_field
from src.data.records import PromptDataError

LENGTHS = ("short_description", "long_description")


def read(path: Path) -> tuple[Item, ...]:
    """Two items a line, short and long, of one .jsonl file or of all of a folder (``data/testmini_prompts``).

    An image's number is its line's number in the file, and a file holds one type, as the scorer has it.
    """
    if existing(path, "TIIF-Bench's data/test_prompts or data/testmini_prompts, or a file of it").is_dir():
        sources = sorted(path.glob("*.jsonl"))
        if not sources:
            raise PromptDataError(f"prompts={path}: no .jsonl file in it; expected TIIF-Bench's data/testmini_prompts")
    else:
        sources = [path]
    items: list[Item] = []
    owners: dict[str, Path] = {}
    for source in sources:
        for number, (value, where) in enumerate(json_lines(source)):
            kind, texts = _line(value, where)
            if number and owners.get(kind) != source:
                raise PromptDataError(f"{where}: type {kind!r} differs from the first line's; a file holds one type")
            if owners.setdefault(kind, source) != source:
                raise PromptDataError(f"{where}: type {kind!r} is in {owners[kind]} too; their images would collide")
            items += [Item(f"{kind}/{length}/{number}", texts[length], kind, place=where) for length in LENGTHS]
    return tuple(items)


def files(items: Sequence[Item], n: int, model_name: str) -> list[ImageFile]:
    """One image a description is all the scorer reads."""
    return [
        ImageFile(PurePosixPath(kind, model_name, length, f"{number}.png"), item, (0,))
        for item in items
        for kind, length, number in [item.name.split("/")]
    ]


def _line(value: object, where: str) -> tuple[str, dict[str, str]]:
    if isinstance(value, Mapping) and "yn_question_list" in value:
        raise PromptDataError(f"{where}: the scorer's questions; expected the prompts, such as data/testmini_prompts")
    if not isinstance(value, Mapping) or "type" not in value:
        raise PromptDataError(f"{where}: not a line of TIIF-Bench; expected an object with type, {', '.join(LENGTHS)}")
    texts = {length: text_field(value, length, where) for length in LENGTHS}
    return path_part(text_field(value, "type", where), where), texts


BENCHMARK = Benchmark("tiif", samples=1, most=1, read=read, files=files)
