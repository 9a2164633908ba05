"""What has to hold in every world, and what the larger one is."""

from __future__ import annotations

import random
import re
from itertools import combinations
from pathlib import Path

import pytest
import torch

from src.rewards.experts.shapes_judge import ShapesJudge
from src.shapes.grammar import format_plan, parse_plan
from src.shapes.judge import judge, judge_labels, recognise
from src.shapes.known import completed
from src.shapes.requirements import arrange, satisfied
from src.shapes.sampler import MAX_PLAN_TOKENS
from src.shapes.scenes import render, render_labels, scene_labels
from src.shapes.splits import QUOTAS, SPLITS, split_prompts, to_record, training_pool, write_splits
from src.shapes.splits import main as write_main
from src.shapes.tokens import (
    build_tokenizer,
    code_patches,
    grid_tokens,
    image_tokens,
    labels_to_tokens,
    tokens_to_pixels,
)
from src.shapes.vq import random_labels
from src.shapes.warmstart import MISDRAWN
from src.shapes.wordings import KINDS
from src.shapes.worlds import LARGE, SMALL, WORLDS, ObjectKind, World
from src.values import PromptRecord

every_world = pytest.mark.parametrize("world", list(WORLDS.values()), ids=list(WORLDS))


def test_the_sizes_of_both_worlds() -> None:
    assert (SMALL.grid, SMALL.cells, SMALL.image_pixels, len(SMALL.kinds), image_tokens(SMALL)) == (3, 9, 24, 12, 36)
    assert (LARGE.grid, LARGE.cells, LARGE.image_pixels, len(LARGE.kinds), image_tokens(LARGE)) == (4, 16, 48, 30, 144)


@every_world
def test_a_world_is_sound(world: World) -> None:
    assert world.grid**2 == world.cells == len(set(world.places))
    side = world.cell_pixels
    for rows in world.bitmaps.values():
        assert len(rows) == side
        assert {len(row) for row in rows} == {side}
        assert {pixel for row in rows for pixel in row} == {"#", "."}
    flat = ["".join(rows) for rows in world.bitmaps.values()]
    assert min(sum(a != b for a, b in zip(*pair, strict=True)) for pair in combinations(flat, 2)) >= side * side / 8
    assert set(world.place_words) == {*world.places, *world.lines}
    assert len(set(world.place_words.values())) == len(world.place_words)
    # A plan's words are single words for the tokenizer.
    assert all(re.fullmatch(r"[a-z]+(-[a-z]+)*", word) for word in (*world.places, *world.colors, *world.bitmaps))
    assert len(world.lines) == 2 * world.grid
    assert all(len(cells) == world.grid for cells in world.lines.values())
    assert set(MISDRAWN) | set(MISDRAWN.values()) <= set(world.kinds)


@every_world
def test_every_line_is_a_row_or_a_column(world: World) -> None:
    rows = [tuple(range(start, start + world.grid)) for start in range(0, world.cells, world.grid)]
    columns = [tuple(range(start, world.cells, world.grid)) for start in range(world.grid)]
    assert [world.place_cells(line) for line in world.lines] == rows + columns
    assert [world.place_cells(place) for place in world.places] == [(cell,) for cell in range(world.cells)]
    with pytest.raises(ValueError, match="'nowhere' is unknown"):
        world.place_cells("nowhere")


@every_world
def test_what_is_drawn_is_recognised_also_through_image_tokens(world: World) -> None:
    labels = random_labels(200, torch.Generator().manual_seed(0), world)
    pictures = render_labels(labels, world)
    assert pictures.shape == (200, 3, world.image_pixels, world.image_pixels)
    assert torch.equal(recognise(pictures, world), labels)
    tokens = labels_to_tokens(labels, world)
    assert tokens.shape == (200, grid_tokens(world) ** 2)
    torch.testing.assert_close(tokens_to_pixels(tokens, world), pictures)
    assert tokens.max() < len(code_patches(world))


@every_world
def test_noise_is_no_object(world: World) -> None:
    noise = torch.rand(20, 3, world.image_pixels, world.image_pixels, generator=torch.Generator().manual_seed(0))
    assert (recognise(noise, world) == world.unclear).all()


@every_world
def test_right_and_wrong_readings_of_every_form_are_judged_as_such(world: World) -> None:
    rng = random.Random(0)
    prompts = rng.sample(training_pool(world), 400)
    requirements = [prompt.requirement() for prompt in prompts]
    right = [arrange(requirement, rng, world) for requirement in requirements]
    wrong = [prompt.misread_scene(rng) for prompt in prompts]
    assert judge_labels(scene_labels(right, world), requirements, world).all_correct.all()
    assert not judge_labels(scene_labels(wrong, world), requirements, world).all_correct.any()
    assert all(satisfied(*pair, world) for pair in zip(requirements, right, strict=True))
    assert judge(render(right, world), [to_record(prompt) for prompt in prompts], world).all_correct.all()


@every_world
def test_plans_are_exact_inverses_and_fit_the_sampler(world: World) -> None:
    rng = random.Random(1)
    tokenizer = build_tokenizer(world)
    for prompt in rng.sample(training_pool(world), 300):
        for scene in (arrange(prompt.requirement(), rng, world), prompt.misread_scene(rng)):
            plan = format_plan(scene, world)
            assert parse_plan(plan, world) == scene
            ids = tokenizer(plan)["input_ids"]
            assert len(ids) == 3 * len(scene) < MAX_PLAN_TOKENS
            assert tokenizer.unk_token_id not in ids
            assert parse_plan(tokenizer.decode(ids), world) == scene


@every_world
def test_splits_are_disjoint_whole_and_understood_from_their_words(world: World) -> None:
    tokenizer = build_tokenizer(world)
    seen: dict[str, set[str]] = {}
    for split in SPLITS:
        prompts = split_prompts(split, world)
        by_form = {name: {p.text for p in prompts if p.form.name == name} for name in QUOTAS[world.name][split]}
        assert {name: len(texts) for name, texts in by_form.items()} == QUOTAS[world.name][split]
        assert {prompt.kind for prompt in prompts} == set(KINDS)
        seen[split] = {prompt.requirement().combination() for prompt in prompts}
        for prompt in prompts:
            assert completed(PromptRecord(prompt.text), world).scene == to_record(prompt).scene
            assert tokenizer.unk_token_id not in tokenizer(prompt.text)["input_ids"]
    assert not any(seen[one] & seen[other] for one, other in combinations(SPLITS, 2))
    pool = {prompt.requirement().combination() for prompt in training_pool(world)}
    assert not pool & (seen["validation"] | seen["test"])


def test_the_larger_world_has_what_the_small_one_has_not() -> None:
    heart = ObjectKind("purple", "heart")
    with pytest.raises(ValueError, match="the small world cannot draw"):
        judge(
            torch.zeros(1, 3, 24, 24), [PromptRecord("x", scene={"objects": [{"color": "purple", "shape": "heart"}]})]
        )
    record = completed(PromptRecord("a purple heart in the upper far right"))
    picture = render([{7: heart}], LARGE)
    score, details = ShapesJudge().score(picture, [record])
    assert score.tolist() == [1.0]
    assert details["all_correct"].tolist() == [1.0]
    assert ShapesJudge().applicable(PromptRecord("six black diamonds and one more"))
    # The same words, and the world by the picture.
    one = PromptRecord("a red circle")
    for world in WORLDS.values():
        shown, empty = render([{0: ObjectKind("red", "circle")}, {}], world)
        assert ShapesJudge().score(torch.stack([shown, empty]), [one, one])[1]["all_correct"].tolist() == [1.0, 0.0]
    every = PromptRecord("a circle of every colour but red and yellow")
    for world, number in ((SMALL, 2), (LARGE, 4)):
        left = [ObjectKind(color, "circle") for color in world.colors if color not in ("red", "yellow")]
        assert len(left) == number
        drawn = render([dict(enumerate(left))], world)
        assert ShapesJudge().score(drawn, [every])[1]["all_correct"].tolist() == [1.0]
    with pytest.raises(ValueError, match="the small world cannot draw"):
        ShapesJudge().score(torch.zeros(1, 3, 24, 24), [record])
    with pytest.raises(ValueError, match=re.escape("expected (N, 3, 24, 24) or (N, 3, 48, 48), the drawn worlds'")):
        ShapesJudge().score(torch.zeros(1, 3, 384, 384), [one])
    with pytest.raises(ValueError, match=re.escape("expected (N, 3, 24, 24) of the small world")):
        recognise(picture)


def test_an_unknown_world_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        write_main(["--world", "huge"])
    assert "argument --world: invalid choice: 'huge'" in capsys.readouterr().err


def test_prompts_of_the_larger_world_do_not_land_on_the_shipped_ones(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        write_main(["--world", "large"])
    assert "--out: missing; say where the large world's prompts go" in capsys.readouterr().err
    write_main(["--world", "large", "--out", str(tmp_path)])
    written = {split: len((tmp_path / f"{split}.jsonl").read_text().splitlines()) for split in SPLITS}
    assert written == write_splits(tmp_path / "again", LARGE)
