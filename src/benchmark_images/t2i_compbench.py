"""T2I-CompBench (arXiv 2307.06350): ``<category>/samples/<prompt>_000000.png``; read from Karine-Huang/T2I-CompBench.

Its scorers read the prompt from the file name up to the first underscore, and order images by the number after the
last one. The number runs over a category, ten images per prompt; 3-in-1 relies on that order.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from src.benchmark_images.items import Benchmark, ImageFile, Item
from src.benchmark_images.reading import existing, text_lines
from src.data.records import PromptDataError

CATEGORIES = ("color", "shape", "texture", "spatial", "3d_spatial", "numeracy", "non_spatial", "complex")
_FILE = re.compile(rf"({'|'.join(CATEGORIES)})(_[a-z]+)*\.txt")
_NAME_BYTES = 255  # of a file name, on the usual file systems


def read(path: Path) -> tuple[Item, ...]:
    """The items of one file (``color_val.txt``), or of every ``<category>_val.txt`` of a folder.

    A line's part before a tab is the prompt, as in the released inference script.
    """
    if existing(path, "T2I-CompBench's examples/dataset, or a file of it such as color_val.txt").is_dir():
        sources = [path / f"{category}_val.txt" for category in CATEGORIES]
        sources = [source for source in sources if source.is_file()]
        if not sources:
            raise PromptDataError(f"prompts={path}: none of {'_val.txt, '.join(CATEGORIES)}_val.txt in it")
    elif _FILE.fullmatch(path.name):
        sources = [path]
    else:
        raise PromptDataError(
            f"prompts={path}: not a prompt file of T2I-CompBench; expected one named after a category, such as"
            " color_val.txt, for its scorers depend on the category"
        )
    items: list[Item] = []
    for source in sources:
        category = source.stem.removesuffix("_val")
        prompts = [(line.split("\t")[0].strip(), where) for line, where in text_lines(source)]
        items += [
            Item(f"{category}/{number:06d}", prompt, category, place=where)
            for number, (prompt, where) in enumerate(prompts)
            if prompt
        ]
    return tuple(items)


def files(items: Sequence[Item], n: int, model_name: str) -> list[ImageFile]:
    """Every category's images are numbered from 0."""
    numbers: dict[str, int] = {}
    result = []
    for item in items:
        for sample in range(n):
            number = numbers.get(item.category, 0)
            numbers[item.category] = number + 1
            name = file_name(item.prompt, number)
            result.append(ImageFile(PurePosixPath(item.category, "samples", name), item, (sample,)))
    return result


def file_name(prompt: str, number: int) -> str:
    """``<prompt>_<number>.png``, with the prompt as near to its words as a file name can be.

    What no file name can hold (slashes, control characters), and underscores, at which the scorers would end the
    prompt, become spaces; what is longer than a file name may be is cut. The number keeps names apart.
    """
    words = re.sub(r"[\x00-\x1f\x7f/\\_]", " ", prompt)
    ending = f"_{number:06d}.png"
    words = words.encode()[: _NAME_BYTES - len(ending)].decode(errors="ignore")
    return words + ending


BENCHMARK = Benchmark("t2i_compbench", samples=10, most=None, read=read, files=files)
