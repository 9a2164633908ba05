"""Data sets by name: read through `datasets` itself, from a local folder, for there is no network in tests."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from src.data.hub_dataset import read_dataset
from src.data.lines import BadLines
from src.data.module import PromptDataModule
from src.data.records import PromptDataError
from src.values import ObjectCount, PromptRecord, SpatialRelation

CAT_AND_DOG = {"obj1": "cat", "obj2": "dog", "locality": "left of"}
ROWS: list[dict[str, Any]] = [
    {
        "caption": "a cat left of a dog",
        "kind": "spatial",
        "where": {"obj1": "cat", "obj2": "dog", "locality": "left of"},
    },
    {"caption": "two owls", "kind": "numeracy", "counted": [{"obj_name": "owl", "num": 2}], "other": 3},
    {"caption": "  ", "kind": "none"},
    {"caption": "a door", "kind": "object"},
]
COLUMNS = {"prompt": "caption", "task_type": "kind", "spatial_info": "where", "numeracy_info": "counted"}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data set as a folder with one JSONL file."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    made = tmp_path / "set"
    made.mkdir()
    (made / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    return made


def test_columns_are_mapped_and_bad_rows_counted(folder: Path) -> None:
    bad = BadLines("skip")
    records = read_dataset(str(folder), "train", None, COLUMNS, bad)
    assert records == [
        PromptRecord("a cat left of a dog", "spatial", spatial=SpatialRelation("cat", "dog", "left of")),
        PromptRecord("two owls", "numeracy", counts=(ObjectCount("owl", 2),)),
        PromptRecord("a door", "object"),
    ]
    assert len(bad.problems) == 1
    assert bad.problems[0].startswith(f"{folder}[train]:2: field 'prompt'")


def test_a_bad_row_raises(folder: Path) -> None:
    with pytest.raises(PromptDataError, match=r"\[train\]:2: field 'prompt': expected a non-empty string"):
        read_dataset(str(folder), "train", None, COLUMNS)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (None, r"no column 'prompt' among caption, .*data\.columns\.prompt"),
        ({"prompt": "text"}, r"data\.columns\.prompt=text: .*no such column; it has caption"),
        ({"prompts": "caption"}, r"data\.columns\.prompts: no field of a prompt"),
    ],
)
def test_a_column_that_is_not_there(folder: Path, columns: dict[str, str] | None, message: str) -> None:
    with pytest.raises(PromptDataError, match=message):
        read_dataset(str(folder), "train", None, columns)


def test_a_split_or_set_that_is_not_there(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(PromptDataError, match=r"split 'validation' cannot be loaded"):
        read_dataset(str(folder), "validation")
    with pytest.raises(PromptDataError, match=r"data\.dataset=.*cannot be loaded"):
        read_dataset(str(tmp_path / "nowhere"), "train")


def test_without_the_library_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(PromptDataError, match=r'pip install -e "\.\[datasets\]"'):
        read_dataset("somebody/prompts", "train")


def test_the_module_holds_some_out_and_counts(folder: Path) -> None:
    module = PromptDataModule(dataset=str(folder), columns=COLUMNS, on_error="skip")
    with pytest.warns(UserWarning, match=r"1 bad lines were left out of .*, the first: .*:2: field 'prompt'"):
        module.setup("fit")
    assert module.skipped == 1
    assert [len(module.train_records), len(module.validation_records), len(module.test_records)] == [1, 1, 1]


@pytest.mark.parametrize("given", [{}, {"path": "a", "dataset": "b"}])
def test_one_source_exactly(given: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=r"data\.path, data\.dataset: .*give one of them"):
        PromptDataModule(**given)


def test_another_answer_to_bad_lines_is_refused() -> None:
    with pytest.raises(ValueError, match=r"data\.on_error=ignore"):
        PromptDataModule("a", on_error="ignore")
