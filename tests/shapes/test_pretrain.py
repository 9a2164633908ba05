"""The recipe at toy length, and its parts."""

from __future__ import annotations

import json
import subprocess
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, JanusForConditionalGeneration

from src.shapes.grammar import parse_plan
from src.shapes.judge import judge_labels
from src.shapes.model import build_model
from src.shapes.pretrain import main, measure
from src.shapes.recipes import WarmStartRecipe
from src.shapes.sampler import MAX_PLAN_TOKENS, draw
from src.shapes.scenes import scene_labels
from src.shapes.splits import split_prompts, training_pool
from src.shapes.tokens import build_tokenizer, image_tokens
from src.shapes.warmstart import (
    MISDRAWN,
    ExampleMaker,
    initialise,
    picture_loss,
    plan_loss,
    warm_start,
)
from src.shapes.wordings import KINDS
from src.shapes.worlds import ObjectKind

RunPython = Callable[..., subprocess.CompletedProcess[str]]

TOY = [
    *["--decoder-steps", "3", "--encoder-steps", "3", "--steps", "3", "--plan-batch", "8", "--picture-batch", "4"],
    *["--crispness-drawings", "20", "--eval-prompts", "16"],
]


def test_the_whole_recipe_runs_and_its_checkpoint_loads(tmp_path: Path) -> None:
    main(["--out", str(tmp_path), *TOY])
    report = json.loads((tmp_path / "RECIPE.json").read_text("utf-8"))
    assert report["options"]["steps"] == 3
    assert report["test"]["prompts"] == 16
    assert 0 <= report["test"]["all_correct"] <= 1
    model = JanusForConditionalGeneration.from_pretrained(tmp_path).eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    # The saved checkpoint gives what the recipe measured: the same prompts, seed and sampler.
    again = measure(model, tokenizer, split_prompts("test")[:16], seed=0)
    assert again == report["test"]


def test_the_recipe_depends_on_its_seed_alone() -> None:
    tokenizer = build_tokenizer()
    recipe = WarmStartRecipe(steps=2, plan_batch=8, picture_batch=4)
    losses = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        losses.append(warm_start(build_model(tokenizer), tokenizer, training_pool(), recipe, seed))
    assert losses[0] == losses[1] != losses[2]


def test_both_losses_fall() -> None:
    torch.manual_seed(0)
    tokenizer = build_tokenizer()
    model = build_model(tokenizer)
    recipe = WarmStartRecipe(steps=25, plan_batch=16, picture_batch=8)
    make = ExampleMaker(training_pool(), recipe, seed=7)
    examples = [make() for _ in range(64)]
    initialise(model, WarmStartRecipe().initial_std)
    kept = torch.zeros(64, dtype=torch.bool)
    with torch.no_grad():
        before = plan_loss(model, tokenizer, examples).item(), picture_loss(model, tokenizer, examples, kept).item()
    warm_start(model, tokenizer, training_pool(), recipe, 0)
    with torch.no_grad():
        after = plan_loss(model, tokenizer, examples).item(), picture_loss(model, tokenizer, examples, kept).item()
    assert after[0] < 0.7 * before[0]
    assert after[1] < 0.7 * before[1]


def test_losses_do_not_depend_on_padding() -> None:
    torch.manual_seed(0)
    tokenizer = build_tokenizer()
    model = build_model(tokenizer).eval()
    initialise(model, WarmStartRecipe().initial_std)
    make = ExampleMaker(training_pool(), WarmStartRecipe(), seed=3)
    examples = [make() for _ in range(6)]
    assert len({len(example.prompt.split()) for example in examples}) > 1
    kept = torch.zeros(6, dtype=torch.bool)
    with torch.no_grad():
        lengths = [len(tokenizer(example.plan)["input_ids"]) + 1 for example in examples]
        single = [plan_loss(model, tokenizer, [example]).item() for example in examples]
        expected = sum(a * n for a, n in zip(single, lengths, strict=True)) / sum(lengths)
        assert plan_loss(model, tokenizer, examples).item() == pytest.approx(expected, abs=1e-5)
        pictures = [picture_loss(model, tokenizer, [example], kept[:1]).item() for example in examples]
        assert picture_loss(model, tokenizer, examples, kept).item() == pytest.approx(sum(pictures) / 6, abs=1e-5)


def test_random_misreadings_are_wrong_and_spread() -> None:
    prompt = next(prompt for prompt in training_pool() if prompt.form.name == "count")
    others = [other for other in training_pool() if other.kind == "pair"]
    make = ExampleMaker([prompt, *others], WarmStartRecipe(misread=1.0, misreading="random"), seed=0)
    wrong = [make() for _ in range(400)]
    mine = [example for example in wrong if example.prompt == prompt.text]
    labels = scene_labels([example.picture for example in mine])
    assert not judge_labels(labels, [prompt.requirement()] * len(mine)).all_correct.any()
    assert len({example.plan for example in mine}) > len(mine) / 2
    with pytest.raises(ValueError, match="misreading=wild: expected one of systematic, random"):
        ExampleMaker([prompt], WarmStartRecipe(misreading="wild"), seed=0)


def test_targets_are_misread_as_often_as_said_and_in_the_one_fixed_way() -> None:
    prompts = training_pool()
    by_text = {prompt.text: prompt for prompt in prompts}
    make = ExampleMaker(prompts, WarmStartRecipe(misread=0.3), seed=0)
    examples = [make() for _ in range(4000)]
    chosen = [by_text[example.prompt] for example in examples]
    labels = scene_labels([parse_plan(example.plan) for example in examples])
    right = judge_labels(labels, [prompt.requirement() for prompt in chosen]).all_correct
    misread = judge_labels(labels, [prompt.misreading() for prompt in chosen]).all_correct
    # A right picture may show the misreading of a relation, too: above and left of at once. A misread one is wrong.
    assert (right | misread).all()
    # Five standard deviations of a share of 0.3 in 4000.
    assert (~right).double().mean().item() == pytest.approx(0.3, abs=0.037)
    kinds = Counter(prompt.kind for prompt in chosen)
    assert set(kinds) == set(KINDS)


def test_pictures_follow_the_plan_but_for_the_planted_flaw() -> None:
    make = ExampleMaker(training_pool(), WarmStartRecipe(misdraw=1.0), seed=0)
    examples = [make() for _ in range(500)]
    flawed = 0
    for example in examples:
        plan = parse_plan(example.plan)
        assert {cell: MISDRAWN.get(kind, kind) for cell, kind in plan.items()} == example.picture
        flawed += example.picture != plan
    assert flawed > 0
    faithful = ExampleMaker(training_pool(), WarmStartRecipe(misdraw=0.0), seed=0)
    assert all(parse_plan(example.plan) == example.picture for example in (faithful() for _ in range(500)))
    assert {ObjectKind("green", "triangle")} == set(MISDRAWN)


def test_the_plain_sampler_keeps_its_shapes_and_its_seed() -> None:
    torch.manual_seed(0)
    tokenizer = build_tokenizer()
    model = build_model(tokenizer).eval()
    prompts = ["a red circle", "two red circles and one more"]
    one, two, other = (draw(model, tokenizer, prompts, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert one.image_tokens.shape == (2, image_tokens())
    assert one.pixels.shape == (2, 3, 24, 24)
    assert one.pixels.min() >= 0
    assert one.pixels.max() <= 1
    assert all(len(plan.split()) <= MAX_PLAN_TOKENS for plan in one.plans)
    assert torch.equal(one.image_tokens, two.image_tokens)
    assert one.plans == two.plans
    assert not torch.equal(one.image_tokens, other.image_tokens)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (["--hidden", "100"], "hidden 100: not a multiple of the attention heads' width, 32"),
        (["--channels", "16"], "channels 16: the VQ model's group norms need a multiple of 32"),
        (["--code-width", "64"], "code width 64: a patch has 48 numbers"),
        (["--plan-batch", "8"], "--plan-batch 8: the 32 pictures are those of its plans"),
        (["--worl", "large"], "unrecognized arguments: --worl large"),
        (["--world", "large"], "required: --out"),
    ],
)
def test_sizes_that_do_not_go_together_are_refused_before_anything_is_made(
    options: list[str], problem: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(options)
    assert problem in capsys.readouterr().err


def test_help_needs_no_heavy_import(run_python: RunPython) -> None:
    code = (
        "import sys\n"
        "from src.shapes.pretrain import build_parser\n"
        "text = build_parser().format_help()\n"
        "assert '--seed' in text\n"
        "assert 'transformers' not in sys.modules and 'torch' not in sys.modules, 'heavy'\n"
    )
    done = run_python(code)
    assert done.returncode == 0, done.stderr


def test_a_directory_with_something_in_it_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.json").write_text("somebody else's")
    for out in (tmp_path, tmp_path / "config.json"):
        with pytest.raises(SystemExit) as ended:
            main(["--out", str(out), *TOY])
        assert ended.value.code == 2
        assert f"--out {out}: is not empty; choose another directory or add --overwrite" in capsys.readouterr().err
    assert [path.read_text() for path in tmp_path.iterdir()] == ["somebody else's"]
