"""Train, validation and test records: from a directory of three files, or held out of one source."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from src.data.jsonl import read_jsonl
from src.data.lines import KINDS, BadLines
from src.data.records import PromptDataError
from src.data.text import read_text
from src.values import PromptRecord

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True, slots=True)
class PromptSplits:
    """The records of the three splits; none is empty."""

    train: tuple[PromptRecord, ...]
    validation: tuple[PromptRecord, ...]
    test: tuple[PromptRecord, ...]


def load_splits(path: str | Path, seed: int = 0, held_out: float = 0.05, bad: BadLines | None = None) -> PromptSplits:
    """The splits at `path`: a directory with train.jsonl, validation.jsonl and test.jsonl, or one prompt file.

    A file is read as JSON lines, or as plain text (one prompt a line) if its name ends in .txt. Of a single
    file the share `held_out` of its different prompts becomes validation and as much test, at least one prompt
    each, chosen by `seed`. Raises PromptDataError as `read_jsonl` does (`bad` may skip lines), and for a directory
    without these files; warns where a prompt of the training set stands in another split too.
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
    """The records of a JSONL file, or of a .txt file with a prompt a line; raises PromptDataError for other names."""
    kind = path.suffix.lower()
    if path.exists() and kind not in (".jsonl", ".txt"):
        raise PromptDataError(f"{path}: the name says nothing of its format; expected {KINDS}")
    return read_text(path, bad) if kind == ".txt" else read_jsonl(path, bad)


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
    return PromptSplits(
        tuple(record for record in records if record.prompt not in validation | test),
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
                f"{path}: {len(shared)} prompts of train.jsonl stand in {name}.jsonl too, such as {min(shared)!r};"
                f" scores there will not be of unseen prompts",
                stacklevel=3,
            )
