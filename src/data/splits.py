"""Train, validation and test records: from a directory of three files, or held out of one source."""

from __future__ import annotations

import re
import warnings
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from src.data.jsonl import json_value, read_array, read_jsonl
from src.data.lines import BYTE_ORDER_MARK, KINDS, BadLines, filled_lines
from src.data.records import PromptDataError
from src.data.text import read_text
from src.values import PromptRecord

TABLES = (".csv", ".tsv", ".parquet", ".arrow", ".xls", ".xlsx")
SPLITS = ("train", "validation", "test")


@dataclass(frozen=True, slots=True)
class PromptSplits:
    """The records of the three splits; none is empty."""

    train: tuple[PromptRecord, ...]
    validation: tuple[PromptRecord, ...]
    test: tuple[PromptRecord, ...]


def load_splits(path: str | Path, seed: int = 0, held_out: float = 0.05, bad: BadLines | None = None) -> PromptSplits:
    """The splits at `path`: a directory with train.jsonl, validation.jsonl and test.jsonl, or one prompt file.

    The content of a single file decides its format (`kind_of`). Of its distinct prompts the share `held_out` becomes
    validation and as much test, at least one prompt each, chosen by `seed`. Raises PromptDataError as `read_jsonl`
    does (`bad` may skip lines), and for a directory without these files; warns if a training prompt is also in
    another split.
    """
    path, bad = Path(path), bad or BadLines()
    if not path.is_dir():
        return hold_out(read_prompt_file(path, bad), seed, held_out, str(path))
    missing = [f"{name}.jsonl" for name in SPLITS if not (path / f"{name}.jsonl").is_file()]
    if missing:
        raise PromptDataError(f"{path}: {', '.join(missing)} missing; a data directory holds one file for each split")
    splits = PromptSplits(*(tuple(read_jsonl(path / f"{name}.jsonl", bad)) for name in SPLITS))
    _warn_of_overlap(splits, path)
    return splits


def read_prompt_file(path: Path, bad: BadLines | None = None) -> list[PromptRecord]:
    """The records of a file of any name: JSON lines, a JSON array, or plain text with a prompt a line (`kind_of`)."""
    readers = {"lines": read_jsonl, "array": read_array, "text": read_text}
    return readers[kind_of(path)](path, bad)


def kind_of(path: Path) -> str:
    """The format of a prompt file, by its first letters: "lines" (JSON), "array" (JSON) or "text".

    The released training set is JSON lines under the name .json. Where the name promises no JSON, a prompt may begin
    with a bracket: only a whole object with a prompt in it, or an array of objects, is taken for JSON then.

    Raises PromptDataError for a file that is missing or cannot be read, and for tables, whose head would be a prompt.
    """
    if path.suffix.lower() in TABLES:
        raise PromptDataError(f"{path}: is a table; expected {KINDS}")
    head, _ = next(filled_lines(path), (b"", ""))
    start = head.lstrip()
    if path.suffix.lower() in (".json", ".jsonl"):
        return "array" if start.startswith(b"[") else "lines"
    if start.startswith(b"["):
        with path.open("rb") as file:
            beginning = file.read(len(head) + 1000).removeprefix(BYTE_ORDER_MARK)
        return "array" if re.match(rb"\s*\[\s*\{", beginning) else "text"
    if start.startswith(b"{"):
        try:
            value = json_value(head, str(path))
        except PromptDataError:
            return "text"
        return "lines" if isinstance(value, dict) and "prompt" in value else "text"
    return "text"


def hold_out(records: list[PromptRecord], seed: int, held_out: float, source: str = "prompts") -> PromptSplits:
    """Split records by prompt: records of the same prompt stay together, and in the file's order.

    Raises ValueError for a share outside (0, 0.5), PromptDataError for fewer than three different prompts.
    """
    if not 0 < held_out < 0.5:
        raise ValueError(f"data.held_out={held_out}: expected a share above 0 and below 0.5")
    prompts = sorted({record.prompt for record in records}, key=lambda prompt: _hashed(f"{seed}/{prompt}"))
    if len(prompts) < len(SPLITS):
        raise PromptDataError(
            f"{source}: {len(prompts)} different prompts are too few to hold some out; give at least three"
            " or a directory with train.jsonl, validation.jsonl and test.jsonl"
        )
    share = max(1, round(held_out * len(prompts)))
    # Three prompts and a share near a half would leave nothing to train on.
    share = min(share, (len(prompts) - 1) // 2)
    validation, test = set(prompts[:share]), set(prompts[share : 2 * share])
    held = validation | test
    return PromptSplits(
        tuple(record for record in records if record.prompt not in held),
        tuple(record for record in records if record.prompt in validation),
        tuple(record for record in records if record.prompt in test),
    )


def _hashed(text: str) -> bytes:
    """An order that depends on nothing but `text`: not on the platform, nor on any library's version."""
    return sha256(text.encode("utf-8", "surrogatepass")).digest()


def _warn_of_overlap(splits: PromptSplits, path: Path) -> None:
    train = {record.prompt for record in splits.train}
    for name, records in (("validation", splits.validation), ("test", splits.test)):
        shared = train & {record.prompt for record in records}
        if shared:
            warnings.warn(
                f"{path}: {len(shared)} prompts of train.jsonl are also in {name}.jsonl, such as {min(shared)!r};"
                f" scores there will not be of unseen prompts",
                stacklevel=3,
            )
