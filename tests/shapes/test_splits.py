"""Splits: disjoint by combination, balanced, complete in words; the shipped files are what the code makes."""

from __future__ import annotations

import json
from collections import Counter
from itertools import combinations
from pathlib import Path

import pytest

from src.shapes.requirements import Requirement
from src.shapes.splits import PROMPTS_DIRECTORY, REPEATS, SPLITS, split_prompts, to_record, training_pool, write_splits
from src.shapes.splits import main as write_main
from src.shapes.wordings import KINDS, forms
from src.shapes.worlds import SMALL

LINES = {
    split: [json.loads(line) for line in (PROMPTS_DIRECTORY / f"{split}.jsonl").read_text("utf-8").splitlines()]
    for split in SPLITS
}


def combinations_of(lines: list[dict]) -> set[frozenset]:
    """An own reading of the shipped files: what a correct picture shows, whatever the order of mention."""
    found = set()
    for line in lines:
        scene = line["scene"]
        names = [(item["color"], item["shape"]) for item in scene["objects"]]
        parts = {(*name, item["number"], item.get("place")) for name, item in zip(names, scene["objects"], strict=True)}
        if "relation" in scene:
            relation = scene["relation"]
            first, second = names[relation["first"]], names[relation["second"]]
            axis = "column" if relation["locality"] in ("left of", "right of") else "row"
            smaller, larger = (first, second) if relation["locality"] in ("left of", "above") else (second, first)
            parts.add((axis, smaller, larger))
        found.add(frozenset(parts))
    return found


def test_prompts_go_into_a_new_or_empty_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "train.jsonl").write_text("theirs", encoding="utf-8")
    with pytest.raises(SystemExit):
        write_main(["--out", str(tmp_path)])
    assert "is not empty; choose another directory or add --overwrite" in capsys.readouterr().err
    assert (tmp_path / "train.jsonl").read_text(encoding="utf-8") == "theirs"


@pytest.mark.parametrize(("one", "other"), list(combinations(SPLITS, 2)))
def test_splits_share_no_combination(one: str, other: str) -> None:
    assert not combinations_of(LINES[one]) & combinations_of(LINES[other])


def test_the_warm_start_sees_no_held_out_combination() -> None:
    seen = {prompt.requirement().combination() for prompt in training_pool()}
    for split in ("validation", "test"):
        assert not seen & {Requirement.from_json(line["scene"]).combination() for line in LINES[split]}


def test_the_shipped_files_are_what_the_code_makes(tmp_path: Path) -> None:
    write_splits(tmp_path)
    for split in SPLITS:
        assert (tmp_path / f"{split}.jsonl").read_text("utf-8") == (PROMPTS_DIRECTORY / f"{split}.jsonl").read_text(
            "utf-8"
        )


def test_sizes_and_shares() -> None:
    kinds = {split: Counter(line["task_type"] for line in lines) for split, lines in LINES.items()}
    assert len(LINES["test"]) >= 512
    assert 128 <= len(LINES["validation"]) <= 256
    for split in SPLITS:
        assert set(kinds[split]) == set(KINDS)
        assert kinds[split]["reasoning"] >= len(LINES[split]) / 5
    assert min(kinds["test"].values()) >= 60


def test_only_training_repeats_prompts_and_only_those_of_forms_with_few() -> None:
    for split in SPLITS:
        times = Counter(line["prompt"] for line in LINES[split])
        expected = {
            line["prompt"]: REPEATS[SMALL.name].get(line["scene"]["form"], 1) if split == "train" else 1
            for line in LINES[split]
        }
        assert times == Counter(expected)


def test_any_stretch_of_a_split_holds_the_kinds_in_their_shares() -> None:
    lines = LINES["test"]
    whole = Counter(line["task_type"] for line in lines)
    for start in range(0, len(lines) - 64, 64):
        part = Counter(line["task_type"] for line in lines[start : start + 64])
        for kind in KINDS:
            assert abs(part[kind] - whole[kind] * 64 / len(lines)) <= 4


def test_every_word_form_and_object_occurs_in_training() -> None:
    def words(split: str) -> set[str]:
        return {word for line in LINES[split] for word in line["prompt"].replace(",", " ,").split()}

    assert words("validation") | words("test") <= words("train")
    assert {line["scene"]["form"] for line in LINES["train"]} == set(forms())
    objects = {(item["color"], item["shape"]) for line in LINES["train"] for item in line["scene"]["objects"]}
    assert objects == set(SMALL.kinds)


def test_prompts_are_short() -> None:
    assert max(len(line["prompt"].replace(",", " ,").split()) for lines in LINES.values() for line in lines) <= 14


def test_a_record_carries_the_fields_of_its_kind() -> None:
    records = {record.prompt: record for record in map(to_record, training_pool())}
    relation = next(record for record in records.values() if record.task_type == "relation")
    assert relation.spatial is not None
    first, second, where = relation.spatial.first, relation.spatial.second, relation.spatial.locality
    assert relation.prompt == f"a {first} {where} a {second}"
    assert relation.nouns == (first, second)
    assert relation.counts == ()
    count = next(record for record in records.values() if record.scene["form"] == "count")
    assert [item.number for item in count.counts] == [count.scene["objects"][0]["number"]]
    assert count.spatial is None


def test_the_order_is_the_same_in_every_run() -> None:
    assert [prompt.text for prompt in split_prompts("test")] == [line["prompt"] for line in LINES["test"]]
