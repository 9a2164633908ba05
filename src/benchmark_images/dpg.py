"""DPG-Bench (arXiv 2403.05135): ``images/<item>.png``, four samples as a grid of 2 x 2; read from TencentQQGYLab/ELLA.

The scorer opens every file of its folder, so the images have their own folder.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from src.benchmark_images.items import Benchmark, ImageFile, Item
from src.benchmark_images.reading import existing, path_part, text_lines
from src.data.records import PromptDataError


def read(path: Path) -> tuple[Item, ...]:
    """An item for every .txt file of the folder ``dpg_bench/prompts``, by name."""
    if not existing(path, "DPG-Bench's folder dpg_bench/prompts").is_dir():
        raise PromptDataError(f"prompts={path}: is a file; expected DPG-Bench's folder dpg_bench/prompts")
    items = []
    for source in sorted(path.glob("*.txt")):
        lines = [(line.strip(), where) for line, where in text_lines(source)]
        if len(lines) != 1:
            raise PromptDataError(f"{source}: {len(lines)} lines of text; a file of DPG-Bench holds one prompt")
        if "." in source.stem:
            raise PromptDataError(f"{source}: the scorer ends an item's name at the first dot; expected no other dot")
        items.append(Item(path_part(source.stem, str(source)), lines[0][0], "dpg", place=lines[0][1]))
    if not items:
        raise PromptDataError(f"prompts={path}: no .txt file in it; expected DPG-Bench's folder dpg_bench/prompts")
    return tuple(items)


def files(items: Sequence[Item], n: int, model_name: str) -> list[ImageFile]:
    """All samples of an item in one file; the scorer cuts it by its --resolution, --pic-num of them."""
    return [ImageFile(PurePosixPath("images", f"{item.name}.png"), item, tuple(range(n))) for item in items]


BENCHMARK = Benchmark("dpg", samples=4, most=4, read=read, files=files)
