"""Prompts are held to the model before anything is rolled out: their length, their words, their metadata."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from src.benchmark_images.command import COMMAND as BENCHMARK
from src.cli import command as cli
from src.cli.compose import compose
from src.cli.prompt_source import PromptSource
from src.config.errors import UserError
from src.data.module import PromptDataModule
from src.evaluate.command import COMMAND as EVALUATE
from src.generate.command import generate
from src.policies.contexts import encode_image_context, encode_plan_context
from src.policies.prompt_checks import check_data, check_metadata, unknown_words
from src.policies.prompt_room import PromptRoom, room_of_checkpoint
from src.rewards.ensemble import RewardEnsemble
from src.rewards.experts.shapes_judge import ShapesJudge
from src.train import COMMAND as TRAIN
from src.values import PromptRecord
from tests.conftest import ROOT
from tests.policies.byte_level import byte_level_tokenizer

EMBEDDED = ROOT / "src" / "shapes" / "checkpoint"
LONG = " ".join(["red"] * 300)


def embedded() -> PromptRoom:
    return room_of_checkpoint(EMBEDDED, 24)


def test_the_longest_prompt_just_fits_and_one_more_token_does_not() -> None:
    """Counted by hand on the contexts themselves: 256 positions, plans of 24 tokens, images of 36."""
    room = embedded()
    longest = next(n for n in range(300, 0, -1) if room.problem(" ".join(["red"] * n)) is None)
    words = [" ".join(["red"] * longest)]
    plan = encode_plan_context(room.tokenizer, words).ids.shape[1] + 24
    # The plan's own words stand in the image's context.
    image = encode_image_context(room.tokenizer, words, [" ".join(["red"] * 24)], 4).ids.shape[1] + 36
    assert max(plan, image) == 256
    assert "the prompt has 300 tokens, at most 193 fit" in str(room.problem(LONG))


def test_a_plan_that_leaves_no_room_is_told_as_such() -> None:
    room = room_of_checkpoint(EMBEDDED, 256)
    assert "none is left for a prompt: max_plan_tokens (256)" in str(room.problem("a red circle"))


def test_a_first_try_without_any_setting_fits_the_embedded_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every shipped prompt; another model has the room for longer plans."""
    config = compose([])
    data = PromptDataModule(config.data.path, 8, 8)
    data.setup("fit")
    check_data(config, data)
    assert config.rollout.max_plan_tokens == 24
    assert compose(["model=janus_pro_7b"]).rollout.max_plan_tokens == 256
    assert compose(["rollout.max_plan_tokens=7"]).rollout.max_plan_tokens == 7


def test_letters_count_as_the_tokenizer_counts_them() -> None:
    room = PromptRoom(byte_level_tokenizer(), 400, 36, 24)
    text = "漢" * (room.longest // 3)
    assert room.problem(text) is None
    assert room.problem(text + "漢" * 2) is not None  # three tokens each, a third of the letters


@pytest.mark.parametrize("kind", ["train", "generate", "evaluate", "benchmark"])
def test_every_command_refuses_a_prompt_that_is_too_long_before_it_reads_weights(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("weights are read")

    monkeypatch.setattr("src.build.build_policy", never)
    monkeypatch.setattr("src.build.build_rewards", never)
    lines = [{"prompt": f"a {word} circle"} for word in ("red", "blue", "green")] + [{"prompt": LONG}]
    file = tmp_path / "p.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    metadata = [{"tag": "single_object", "include": [{"class": "dog", "count": 1}], **line} for line in lines]
    geneval = tmp_path / "evaluation_metadata.jsonl"
    geneval.write_text("".join(json.dumps(line) + "\n" for line in metadata))
    out = tmp_path / "out"
    if kind == "generate":
        with pytest.raises(UserError) as told:
            generate(compose([f"out={out}"], "generate"), PromptSource(files=(str(file),)))
        message = str(told.value)
    else:
        command, arguments = {
            "train": (TRAIN, ["experiment=bicot_lora", f"run.dir={out}", f"data.path={file}", "logger=csv"]),
            "evaluate": (EVALUATE, ["data=shapes", f"data.path={file}", "rewards=shapes", f"out={out}"]),
            "benchmark": (BENCHMARK, ["name=geneval", f"prompts={geneval}", f"out={out}"]),
        }[kind]
        if kind == "evaluate":  # only the test part is rolled out: all three parts are the same here
            for split in ("train", "validation", "test"):
                (tmp_path / f"{split}.jsonl").write_text(file.read_text())
            arguments[1] = f"data.path={tmp_path}"
            file = tmp_path / "test.jsonl"
        assert cli.run(command, arguments) == 2
        message = capsys.readouterr().err
    assert f"{geneval if kind == 'benchmark' else file}:4: the prompt has 300 tokens, at most 193 fit" in message
    assert not out.exists()


def test_long_prompts_are_left_out_where_bad_lines_are(tmp_path: Path) -> None:
    prompts = [f"a red circle {number}" for number in range(20)] + [LONG]
    (tmp_path / "p.txt").write_text("\n".join(prompts))
    data = PromptDataModule(tmp_path / "p.txt", on_error="skip")
    with pytest.warns(UserWarning, match="1 bad lines were left out of .*, the first: .*p.txt:21: the prompt has 300"):
        data.refuse(embedded().problem)
    kept = [*data.train_records, *data.validation_records, *data.test_records]
    assert len(kept) == 20
    assert data.skipped == 1


def test_unknown_words_are_counted_once_for_all_prompts() -> None:
    """The embedded model writes "two tomatoes" and "a red-circle" as unknown words."""
    room = embedded()
    prompts = ["two tomatoes", "a red-circle, two TOMATOES.", "a red circle"]
    assert room.unknown_words(prompts) == Counter({"tomatoes": 1, "TOMATOES": 1, "red-circle": 1})
    assert room.unknown_words(['второй, "red" 漢字']) == Counter({"второй": 1, '"': 2, "漢字": 1})
    told = unknown_words(room, prompts)
    assert told is not None
    assert told.startswith("3 words of the prompts are not in the model's vocabulary and read as <|unknown|>")
    assert "'red-circle' (1)" in told
    assert unknown_words(room, ["a red circle left of a blue square."]) is None
    assert unknown_words(PromptRoom(byte_level_tokenizer(), 1000, 36, 24), ["two tomatoes 🍅"]) is None


def test_the_drawn_worlds_own_prompts_hold_no_unknown_word() -> None:
    data = PromptDataModule(ROOT / "src" / "shapes" / "prompts")
    records = [*data.train_records, *data.validation_records, *data.test_records]
    assert unknown_words(embedded(), (record.prompt for record in records)) is None


def test_training_warns_once_of_unknown_words(tmp_path: Path) -> None:
    from src.policies.prompt_checks import check_data

    (tmp_path / "p.txt").write_text("two tomatoes\na red circle\na red-circle\ntwo tomatoes again\n")
    config = compose(["experiment=bicot_lora", f"data.path={tmp_path / 'p.txt'}"], "config")
    data = PromptDataModule(tmp_path / "p.txt", held_out=0.3)
    with pytest.warns(UserWarning, match="vocabulary") as caught:
        check_data(config, data)
    told = [str(one.message) for one in caught if "vocabulary" in str(one.message)]
    assert len(told) == 1
    assert "'tomatoes' (2)" in told[0]


@pytest.mark.parametrize(
    ("scene", "problem"),
    [
        ({"objects": 5}, "key 'objects' is 5; expected a list"),
        ({"objects": "red circle"}, "key 'objects' is 'red circle'; expected a list"),
        ({"objects": [3]}, "object 3: expected an object"),
        (
            {"objects": [{"color": "red", "shape": "circle", "number": "two"}]},
            "number is 'two'; expected a whole",
        ),
        ({"objects": [{"color": "red", "shape": "circle", "number": 1.5}]}, "number is 1.5; expected a whole number"),
        ({"objects": [{"color": "red", "shape": "circle", "place": [1]}]}, r"place \[1\]; expected its name"),
        ({"objects": [{"color": "red", "shape": "circle"}], "relation": 3}, "key 'relation' is 3; expected an object"),
        ({"objects": [{"color": "red", "shape": "circle"}], "relation": {"first": 0}}, "expected an object with first"),
        (
            {"objects": [{"color": "red", "shape": "circle"}], "relation": {"first": [], "second": 1, "locality": "x"}},
            r"relation first is \[\]",
        ),
    ],
)
def test_a_scene_of_another_form_is_told_with_its_line(scene: dict[str, Any], problem: str) -> None:
    rewards = RewardEnsemble({"shapes": ShapesJudge()})
    with pytest.raises(UserError, match=rf"p\.jsonl:7: scene: .*{problem}"):
        check_metadata(rewards, [PromptRecord("a red circle", scene=scene, place="p.jsonl:7")])


def test_scenes_that_a_world_draws_pass() -> None:
    data = PromptDataModule(ROOT / "src" / "shapes" / "prompts")
    check_metadata(RewardEnsemble({"shapes": ShapesJudge()}), data.train_records)
