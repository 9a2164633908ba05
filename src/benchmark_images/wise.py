"""WISE (arXiv 2503.07265): ``<prompt_id>.png`` in one folder; read from PKU-YuanGroup/WISE."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

from src.benchmark_images.items import Benchmark, ImageFile, Item
from src.benchmark_images.reading import existing, json_file, text_field
from src.data.records import PromptDataError

THEMES = ("cultural_common_sense", "spatio-temporal_reasoning", "natural_science")
RELEASES = ("_verified", "")  # WISE_Verified, and the release of the paper (WISE_legacy)


def read(path: Path) -> tuple[Item, ...]:
    """The items of one .json file, or of a folder's three (``data_verified``, ``WISE_legacy/data``), by number."""
    if existing(path, "WISE's data_verified or WISE_legacy/data, or a file of it").is_dir():
        sources = next((found for release in RELEASES if (found := _release(path, release))), [])
        if not sources:
            names = ", ".join(f"{theme}[_verified].json" for theme in THEMES)
            raise PromptDataError(f"prompts={path}: not a folder of WISE; expected {names}")
    else:
        sources = [path]
    items: dict[int, Item] = {}
    for source in sources:
        values = json_file(source)
        if not isinstance(values, list):
            raise PromptDataError(f"{source}: not a file of WISE; expected a list of prompts")
        for number, value in enumerate(values):
            identity, item = _item(value, f"{source}: [{number}]")
            if identity in items:
                raise PromptDataError(f"{source}: [{number}]: prompt_id {identity} is there already")
            items[identity] = item
    return tuple(items[identity] for identity in sorted(items))


def files(items: Sequence[Item], n: int, model_name: str) -> list[ImageFile]:
    """One image a prompt is all the scorer reads."""
    return [ImageFile(PurePosixPath(f"{item.name}.png"), item, (0,)) for item in items]


def _release(folder: Path, release: str) -> list[Path]:
    sources = [folder / f"{theme}{release}.json" for theme in THEMES]
    return sources if all(source.is_file() for source in sources) else []


def _item(value: object, where: str) -> tuple[int, Item]:
    if not isinstance(value, Mapping) or "Prompt" not in value or "prompt_id" not in value:
        raise PromptDataError(f"{where}: not a prompt of WISE; expected an object with Prompt and prompt_id")
    identity = value["prompt_id"]
    if not isinstance(identity, int) or isinstance(identity, bool) or identity < 0:
        raise PromptDataError(f"{where}: prompt_id={identity!r}: expected an integer >= 0")
    return identity, Item(
        str(identity), text_field(value, "Prompt", where), text_field(value, "Category", where), value, where
    )


BENCHMARK = Benchmark("wise", samples=1, most=1, read=read, files=files)
