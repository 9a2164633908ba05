"""Each benchmark's prompts and paths against trees written by hand, and its scorer's own way of finding images."""

from __future__ import annotations

import glob
import json
import os
import re
from pathlib import Path, PurePosixPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from src.benchmark_images.registry import BENCHMARKS
from src.benchmark_images.t2i_compbench import file_name
from src.data.records import PromptDataError
from tests.benchmark_images.prompts import COPIES, GENEVAL, WISE, jsonl, written

# n images a prompt -> every path with its prompt and samples, in the order they are painted.
TREES: dict[str, tuple[int, list[tuple[str, str, tuple[int, ...]]]]] = {
    "geneval": (
        2,
        [
            ("00000/samples/00000.png", "a photo of a bench", (0,)),
            ("00000/samples/00001.png", "a photo of a bench", (1,)),
            ("00001/samples/00000.png", "a photo of a dog left of a cat", (0,)),
            ("00001/samples/00001.png", "a photo of a dog left of a cat", (1,)),
        ],
    ),
    "t2i_compbench": (
        2,
        [
            ("color/samples/a green bench and a blue bowl_000000.png", "a green bench and a blue bowl", (0,)),
            ("color/samples/a green bench and a blue bowl_000001.png", "a green bench and a blue bowl", (1,)),
            ("color/samples/a blue bench and a green bowl_000002.png", "a blue bench and a green bowl", (0,)),
            ("color/samples/a blue bench and a green bowl_000003.png", "a blue bench and a green bowl", (1,)),
            (
                "complex/samples/The red hat was on top of the brown coat rack._000000.png",
                "The red hat was on top of the brown coat rack.",
                (0,),
            ),
            (
                "complex/samples/The red hat was on top of the brown coat rack._000001.png",
                "The red hat was on top of the brown coat rack.",
                (1,),
            ),
        ],
    ),
    "wise": (
        1,
        [
            ("1.png", "a pastry", (0,)),
            ("401.png", "prompt 401", (0,)),
            ("402.png", "prompt 402", (0,)),
            ("641.png", "prompt 641", (0,)),
        ],
    ),
    "dpg": (
        4,
        [
            ("images/0.png", "A field.", (0, 1, 2, 3)),
            ("images/COCOval2014000000010363.png", "A long scene. Of two sentences.", (0, 1, 2, 3)),
        ],
    ),
    "tiif": (
        1,
        [
            ("action+2d/bicot/short_description/0.png", "action+2d 0", (0,)),
            ("action+2d/bicot/long_description/0.png", "much action+2d 0", (0,)),
            ("action+2d/bicot/short_description/1.png", "action+2d 1", (0,)),
            ("action+2d/bicot/long_description/1.png", "much action+2d 1", (0,)),
            ("style/bicot/short_description/0.png", "style 0", (0,)),
            ("style/bicot/long_description/0.png", "much style 0", (0,)),
        ],
    ),
}


@pytest.mark.parametrize("name", TREES)
def test_trees(tmp_path: Path, name: str) -> None:
    n, expected = TREES[name]
    items = BENCHMARKS[name].read(COPIES[name](tmp_path))
    assert len({item.name for item in items}) == len(items)
    files = BENCHMARKS[name].files(items, n, "bicot")
    assert [(str(file.path), file.item.prompt, file.samples) for file in files] == expected


def test_geneval_has_each_prompts_line_beside_it(tmp_path: Path) -> None:
    benchmark = BENCHMARKS["geneval"]
    items = benchmark.read(COPIES["geneval"](tmp_path))
    documents = benchmark.documents(items)
    assert {str(path): json.loads(text) for path, text in documents.items()} == {
        "00000/metadata.jsonl": GENEVAL[0],
        "00001/metadata.jsonl": GENEVAL[1],
    }
    assert benchmark.read(tmp_path) == items, "the folder is as good as the file"
    assert [item.category for item in items] == ["single_object", "position"]


def test_one_file_is_as_good_as_a_folder(tmp_path: Path) -> None:
    copies = {name: COPIES[name](tmp_path / name) for name in ("t2i_compbench", "wise", "tiif")}
    (only,) = BENCHMARKS["t2i_compbench"].read(copies["t2i_compbench"] / "color_train.txt")
    assert (only.category, only.prompt) == ("color_train", "not wanted")
    assert [item.name for item in BENCHMARKS["wise"].read(copies["wise"] / "merge.json")] == ["401", "402", "641"]
    assert len(BENCHMARKS["tiif"].read(copies["tiif"] / "style_prompts.jsonl")) == 2


def test_the_release_of_the_paper_is_read_where_it_lies(tmp_path: Path) -> None:
    names = ("cultural_common_sense", "spatio-temporal_reasoning", "natural_science")
    texts = {f"{name}.json": json.dumps([WISE[i]]) for i, name in enumerate(names)}
    rewritten = {f"{name}_rewrite.json": json.dumps([WISE[i] | {"Prompt": "x"}]) for i, name in enumerate(names)}
    items = BENCHMARKS["wise"].read(written(tmp_path, texts | rewritten))
    assert [item.prompt for item in items] == ["prompt 401", "prompt 402", "prompt 641"]


def test_scorers_find_what_is_written(tmp_path: Path) -> None:
    """By the steps the released scorers take to get from a file's name to its prompt or line."""
    names = [PurePosixPath(path).name for path, _, _ in TREES["t2i_compbench"][1] if path.startswith("color")]
    ordered = sorted({*names}, key=lambda name: int(name.split("_")[-1].split(".")[0]))
    assert ordered == names
    assert [name.split("_")[0] for name in ordered] == [
        prompt for path, prompt, _ in TREES["t2i_compbench"][1] if path.startswith("color")
    ]
    for path, _, _ in TREES["geneval"][1]:
        folder, samples, name = path.split("/")
        assert folder.isdigit()
        assert samples == "samples"
        assert re.match(r"\d+\.png", name)
    asked_of = {source.stem for source in COPIES["dpg"](tmp_path / "copy").iterdir()}  # item_id of dpg_bench.csv
    assert {os.path.basename(path).split(".")[0] for path, _, _ in TREES["dpg"][1]} == asked_of
    for path, _, _ in TREES["tiif"][1]:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).touch()
    for kind, count in (("action+2d", 2), ("style", 1)):
        for length in ("short_description", "long_description"):
            for index in range(count):
                assert glob.glob(os.path.join(tmp_path, kind, "bicot", length, f"{index}.*"))


@given(st.text(min_size=1, max_size=400), st.text(min_size=1, max_size=400), st.integers(0, 99_999))
def test_compbench_names_are_names_and_never_collide(prompt: str, other: str, number: int) -> None:
    name = file_name(prompt.encode(errors="ignore").decode(), number)
    assert len(name.encode()) <= 255
    assert not set(name) & set("/\\\0\n\r\t")
    assert int(name.split("_")[-1].split(".")[0]) == number
    assert name.count("_") == 1, "the prompt ends at the first underscore"
    assert name.casefold() != file_name(other.encode(errors="ignore").decode(), number + 1).casefold()


def test_a_long_compbench_prompt_is_cut_between_characters() -> None:
    assert file_name("a/b_c", 7) == "a b c_000007.png"
    assert file_name("圆" * 100, 3) == "圆" * ((255 - 11) // 3) + "_000003.png"


OTHERS = [(name, copy) for name in COPIES for copy in COPIES if name != copy]


@pytest.mark.parametrize(("name", "copy"), OTHERS)
def test_prompts_of_another_benchmark_are_refused(tmp_path: Path, name: str, copy: str) -> None:
    path = COPIES[copy](tmp_path)
    if path.is_file():
        places = [path, path.parent]
    else:
        places = [path, *(sorted(path.iterdir()) if name not in ("t2i_compbench",) else [])]
    for place in places:
        with pytest.raises(PromptDataError) as raised:
            BENCHMARKS[name].read(place)
        assert str(tmp_path) in str(raised.value)
        assert "\n" not in str(raised.value)


@pytest.mark.parametrize("name", COPIES)
def test_a_missing_copy_is_named(tmp_path: Path, name: str) -> None:
    for path in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(PromptDataError) as raised:
            BENCHMARKS[name].read(path)
        assert str(path) in str(raised.value)


@pytest.mark.parametrize(
    ("name", "files", "words"),
    [
        ("geneval", {"evaluation_metadata.jsonl": jsonl(GENEVAL) + "{\n"}, "evaluation_metadata.jsonl:3"),
        ("geneval", {"evaluation_metadata.jsonl": jsonl([GENEVAL[0] | {"include": []}])}, "nothing to judge"),
        ("dpg", {"0.txt": ""}, "0 lines"),
        ("dpg", {"a.b.txt": "x"}, "first dot"),
        ("tiif", {"a.jsonl": jsonl([{"type": "style", "yn_question_list": []}])}, "scorer's questions"),
        ("tiif", {"a.jsonl": jsonl([{"type": "../x", "short_description": "a", "long_description": "b"}])}, "folder"),
        ("tiif", {"a.jsonl": jsonl([{"type": "x", "short_description": "a"}])}, "'long_description'"),
    ],
)
def test_damaged_copies_are_told(tmp_path: Path, name: str, files: dict[str, str], words: str) -> None:
    with pytest.raises(PromptDataError, match=words):
        BENCHMARKS[name].read(written(tmp_path, files))


def test_one_image_never_stands_for_two_prompts(tmp_path: Path) -> None:
    twice = written(tmp_path / "w", {"x.json": json.dumps([WISE[0], WISE[0]])}) / "x.json"
    with pytest.raises(PromptDataError, match="prompt_id 402 is there already"):
        BENCHMARKS["wise"].read(twice)
    line = {"type": "style", "short_description": "a", "long_description": "b"}
    two = written(tmp_path / "t", {"a.jsonl": jsonl([line]), "b.jsonl": jsonl([line])})
    with pytest.raises(PromptDataError, match=r"a\.jsonl too"):
        BENCHMARKS["tiif"].read(two)
    mixed = written(tmp_path / "m", {"a.jsonl": jsonl([line, line | {"type": "text"}])})
    with pytest.raises(PromptDataError, match="a file holds one type"):
        BENCHMARKS["tiif"].read(mixed)
