"""Train, validation and test prompts of the drawn world, disjoint by combination.

A combination is what a correct picture must show (`Requirement.combination`), so two wordings, or two
kinds of prompt, that ask for the same picture are always in the same split. Splits are a pure function
of the world: no seed chooses them.

    python -m src.shapes.splits --out DIRECTORY        writes train.jsonl, validation.jsonl, test.jsonl
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from src.shapes.requirements import Requirement, arrange, satisfied
from src.shapes.wordings import Form, Params, forms
from src.shapes.worlds import SMALL, WORLDS, Scene, World
from src.values import ObjectCount, PromptRecord, SpatialRelation

SPLITS = ("train", "validation", "test")
SHARES = {"test": 0.25, "validation": 0.10}
PROMPTS_DIRECTORY = Path(__file__).parent / "prompts"

_HELD_OUT: Mapping[str, Mapping[str, int]] = {
    "validation": {
        **{"one": 2, "one_placed": 18, "count": 8, "count_placed": 16, "relation": 24, "pair": 16, "triple": 8},
        **{"sum": 12, "every_colour_but": 4, "every_shape_but": 2, "as_many": 8, "more_than": 10},
    },
    "test": {
        **{"one": 6, "one_placed": 54, "count": 24, "count_placed": 72, "relation": 100, "pair": 60, "triple": 40},
        **{"sum": 40, "every_colour_but": 14, "every_shape_but": 6, "as_many": 48, "more_than": 48},
    },
}

#: Prompts of each form in a split of a world.
QUOTAS: Mapping[str, Mapping[str, Mapping[str, int]]] = {
    "small": {
        "train": {
            **{"one": 16, "one_placed": 134, "count": 58, "count_placed": 182, "relation": 300, "pair": 210},
            **{"triple": 90, "sum": 106, "every_colour_but": 32, "every_shape_but": 16, "as_many": 150},
            **{"more_than": 204},
        },
        **_HELD_OUT,
    },
    "large": {
        "train": {
            **{"one": 38, "one_placed": 400, "count": 200, "count_placed": 500, "relation": 900, "pair": 600},
            **{"triple": 300, "sum": 400, "every_colour_but": 120, "every_shape_but": 38, "as_many": 400},
            **{"more_than": 500},
        },
        **_HELD_OUT,
    },
}

#: How often each training prompt of a form is in train.jsonl: forms with few combinations would otherwise be rare.
REPEATS: Mapping[str, Mapping[str, int]] = {
    "small": {"one": 5, "count": 3, "every_colour_but": 4, "every_shape_but": 5},
    "large": {"one": 6, "count": 2, "every_colour_but": 3, "every_shape_but": 6},
}


@dataclass(frozen=True, slots=True)
class DrawnPrompt:
    """One wording of one combination, which `form` and `params` name."""

    text: str
    form: Form
    params: Params

    @property
    def kind(self) -> str:
        """The prompt kind, `PromptRecord.task_type`."""
        return self.form.kind

    def requirement(self) -> Requirement:
        """What a correct picture shows."""
        return self.form.requirement(self.params)

    def misreading(self) -> Requirement:
        """What the planted wrong reading shows."""
        return self.form.misreading(self.params)

    def misread_scene(self, rng: random.Random) -> Scene:
        """A scene as the misreading has it, and wrong: above is not drawn to be left of by chance."""
        world = self.form.world
        while satisfied(self.requirement(), scene := arrange(self.misreading(), rng, world), world):
            pass
        return scene


def _rank(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def split_of_combinations(world: World = SMALL) -> dict[str, str]:
    """Combination name -> split. Shares hold within each form (the first that asks for a combination)."""
    splits: dict[str, str] = {}
    for form in forms(world).values():
        names = {form.requirement(params).combination() for params in form.combinations()}
        new = sorted(names - splits.keys(), key=_rank)
        tests = round(SHARES["test"] * len(new))
        validations = round(SHARES["validation"] * len(new))
        for place, name in enumerate(new):
            splits[name] = "test" if place < tests else "validation" if place < tests + validations else "train"
    return splits


def prompts_of_form(form: Form, split: str, splits: Mapping[str, str]) -> list[DrawnPrompt]:
    """All prompts of a form in a split; every combination comes once before any comes again."""
    of_combination: dict[str, list[DrawnPrompt]] = {}
    for params in form.combinations():
        name = form.requirement(params).combination()
        if splits[name] == split:
            prompts = (DrawnPrompt(text, form, params) for text in form.wordings(params))
            of_combination.setdefault(name, []).extend(prompts)
    ranked: list[tuple[int, str, DrawnPrompt]] = []
    for same in of_combination.values():
        same.sort(key=lambda prompt: _rank(prompt.text))
        ranked += [(place, _rank(prompt.text), prompt) for place, prompt in enumerate(same)]
    return [prompt for _, _, prompt in sorted(ranked, key=lambda item: item[:2])]


def split_prompts(split: str, world: World = SMALL) -> list[DrawnPrompt]:
    """The prompts of a split, kinds evenly mixed: any stretch of the list holds them in their shares."""
    splits = split_of_combinations(world)
    placed: list[tuple[float, str, DrawnPrompt]] = []
    for form_name, quota in QUOTAS[world.name][split].items():
        prompts = prompts_of_form(forms(world)[form_name], split, splits)[:quota]
        shuffled = sorted(prompts, key=lambda prompt: _rank("order " + prompt.text))
        shuffled *= REPEATS[world.name].get(form_name, 1) if split == "train" else 1
        placed += [((i + 0.5) / len(shuffled), form_name, prompt) for i, prompt in enumerate(shuffled)]
    return [prompt for _, _, prompt in sorted(placed, key=lambda item: item[:2])]


def training_pool(world: World = SMALL) -> list[DrawnPrompt]:
    """Every wording of every training combination, for the supervised warm start."""
    splits = split_of_combinations(world)
    return [prompt for form in forms(world).values() for prompt in prompts_of_form(form, "train", splits)]


def to_record(prompt: DrawnPrompt) -> PromptRecord:
    """The prompt as the rest of the project sees it; `scene` also names the form."""
    requirement = prompt.requirement()
    names = tuple(item.kind.name for item in requirement.objects)
    spatial = None
    if requirement.relation is not None:
        relation = requirement.relation
        spatial = SpatialRelation(names[relation.first], names[relation.second], relation.locality)
    counts = tuple(ObjectCount(item.kind.name, item.number) for item in requirement.objects)
    return PromptRecord(
        prompt=prompt.text,
        task_type=prompt.kind,
        nouns=names,
        spatial=spatial,
        counts=counts if any(item.number > 1 for item in requirement.objects) else (),
        scene={**requirement.to_json(), "form": prompt.form.name},
    )


def to_line(record: PromptRecord) -> dict[str, Any]:
    """A record in the field names of T2I-R1's released prompts, plus `scene`."""
    line: dict[str, Any] = {"prompt": record.prompt, "task_type": record.task_type, "nouns": list(record.nouns)}
    if record.spatial is not None:
        spatial = record.spatial
        line["spatial_info"] = {"obj1": spatial.first, "obj2": spatial.second, "locality": spatial.locality}
    if record.counts:
        line["numeracy_info"] = [{"obj_name": count.name, "num": count.number} for count in record.counts]
    line["scene"] = dict(record.scene)
    return line


def write_splits(directory: Path, world: World = SMALL) -> dict[str, int]:
    """Write <split>.jsonl for all splits; returns how many prompts each has."""
    directory.mkdir(parents=True, exist_ok=True)
    sizes = {}
    for split in SPLITS:
        lines = [json.dumps(to_line(to_record(prompt))) for prompt in split_prompts(split, world)]
        (directory / f"{split}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
        sizes[split] = len(lines)
    return sizes


def holds_something(path: Path) -> bool:
    """Whether `path` is anything but a new or empty directory."""
    return path.exists() and (not path.is_dir() or any(path.iterdir()))


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Write the drawn world's train, validation and test prompts.")
    parser.add_argument("--world", choices=WORLDS, default=SMALL.name)
    parser.add_argument("--out", type=Path, help="directory (default: the shipped one, of the small world)")
    parser.add_argument("--overwrite", action="store_true", help="write into --out even if there is something")
    options = parser.parse_args(arguments)
    world = WORLDS[options.world]
    if options.out is None:
        if world is not SMALL:
            parser.error(f"--out: missing; say where the {world.name} world's prompts go")
        options.out = PROMPTS_DIRECTORY
    elif not options.overwrite and holds_something(options.out):
        parser.error(f"--out {options.out}: is not empty; choose another directory or add --overwrite")
    for split, size in write_splits(options.out, world).items():
        print(f"{split}: {size} prompts in {options.out / f'{split}.jsonl'}")


if __name__ == "__main__":
    main()
