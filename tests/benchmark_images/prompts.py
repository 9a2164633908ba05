"""A small copy of each benchmark's prompts, in the shape its repository has them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

GENEVAL: list[dict[str, Any]] = [
    {"tag": "single_object", "include": [{"class": "bench", "count": 1}], "prompt": "a photo of a bench"},
    {
        "tag": "position",
        "include": [{"class": "cat", "count": 1}, {"class": "dog", "count": 1, "position": ["left of", 0]}],
        "prompt": "a photo of a dog left of a cat",
    },
]
WISE = [
    {"Prompt": f"prompt {number}", "Explanation": "why", "Category": "time", "Subcategory": "s", "prompt_id": number}
    for number in (402, 401, 641)
]


def jsonl(values: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(value) + "\n" for value in values)


def geneval(folder: Path) -> Path:
    return written(folder, {"evaluation_metadata.jsonl": jsonl(GENEVAL)}) / "evaluation_metadata.jsonl"


def t2i_compbench(folder: Path) -> Path:
    """Line ends and a last line without one as they are in the repository; files beside them that are not wanted."""
    return written(
        folder,
        {
            "color_val.txt": "a green bench and a blue bowl\r\na blue bench and a green bowl",
            "color_train.txt": "not wanted\n",
            "complex_val.txt": "The red hat was on top of the brown coat rack.\r\n",
            "new_objects.txt": "cup - cups\n",
        },
    )


def wise(folder: Path) -> Path:
    return written(
        folder,
        {
            "cultural_common_sense_verified.json": json.dumps([WISE[2] | {"prompt_id": 1, "Prompt": "a pastry"}]),
            "spatio-temporal_reasoning_verified.json": json.dumps(WISE[:2]),
            "natural_science_verified.json": json.dumps(WISE[2:]),
            "merge.json": json.dumps(WISE),
        },
    )


def dpg(folder: Path) -> Path:
    return written(folder, {"COCOval2014000000010363.txt": "A long scene. Of two sentences.", "0.txt": "A field.\n"})


def tiif(folder: Path) -> Path:
    def line(kind: str, number: int) -> dict[str, str]:
        return {"type": kind, "short_description": f"{kind} {number}", "long_description": f"much {kind} {number}"}

    return written(
        folder,
        {
            "action+2d_prompts.jsonl": jsonl([line("action+2d", 0), line("action+2d", 1)]),
            "style_prompts.jsonl": jsonl([line("style", 0)]),
        },
    )


def written(folder: Path, files: dict[str, str]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name).write_bytes(text.encode())
    return folder


COPIES = {"geneval": geneval, "t2i_compbench": t2i_compbench, "wise": wise, "dpg": dpg, "tiif": tiif}
