"""The shipped YAMLs of experts with weights: each builds its expert, and tells what is missing by its key."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from src.build import build_rewards
from src.cli.compose import compose
from src.config.errors import UserError
from src.rewards.ensemble import RewardEnsemble
from tests.rewards.tiny_experts import aesthetic, clip_score, hps, orm, vlm_judge

# What the command line would say besides `rewards=NAME`; HPS and ORM stand below: a YAML fixes their sizes.
BUILDS = {
    "aesthetic": (aesthetic, ("path", "tower_path", "tower")),
    "clip_score": (clip_score, ("path",)),
    "vlm_judge": (vlm_judge, ("path", "dtype")),
}


def composed(name: str, values: dict[str, object]) -> RewardEnsemble:
    keys = [f"++rewards.experts.{name}.{key}={value}" for key, value in values.items()]
    return build_rewards(compose(["experiment=bicot_lora", f"rewards={name}", *keys]))


@pytest.mark.parametrize("name", BUILDS)
def test_a_yaml_and_a_path_make_the_expert(name: str, tmp_path: Path) -> None:
    module, keys = BUILDS[name]
    arguments = module.write(tmp_path)
    ensemble = composed(name, {key: arguments[key] for key in keys})
    assert ensemble.names == (name,)
    assert type(ensemble.sources[0].experts[name]) is module.EXPERT
    report = ensemble(torch.rand(2, 3, 12, 12), module.records(2))
    assert report.applicable.all()
    assert report.total.isfinite().all()


def hps_of_another_size(folder: Path) -> dict[str, object]:
    arguments = hps.write(folder)
    return {key: arguments[key] for key in ("path", "tokenizer")}


def orm_of_another_kind(folder: Path) -> dict[str, object]:
    orm.write_checkpoint(folder, orm.llava_state(), orm.CONFIG | {"mm_projector_type": "linear"})
    return {"path": folder}


@pytest.mark.parametrize(
    ("name", "values", "words"),
    [
        ("hps", hps_of_another_size, ["rewards.experts.hps", "its end-of-text token is 517"]),
        ("orm", orm_of_another_kind, ["rewards.experts.orm", "config.json: mm_projector_type is 'linear'"]),
        ("aesthetic", lambda folder: {}, ["rewards.experts.aesthetic: path: not set"]),
        ("hps", lambda folder: {"tokenizer": folder / "no"}, ["rewards.experts.hps: tokenizer=", "no such directory"]),
        ("orm", lambda folder: {"path": folder / "no"}, ["rewards.experts.orm: path=", "no such directory"]),
        ("clip_score", lambda folder: {"path": folder / "no"}, ["rewards.experts.clip_score: path="]),
        ("vlm_judge", lambda folder: {"path": folder / "no"}, ["rewards.experts.vlm_judge: path="]),
        ("aesthetic", lambda folder: {"path": folder / "no"}, ["rewards.experts.aesthetic: path="]),
        ("vlm_judge", lambda folder: {"dtype": "half"}, ["rewards.experts.vlm_judge: dtype=half"]),
        ("clip_score", lambda folder: {"pat": "x"}, ["rewards.experts.clip_score", "pat"]),
    ],
)
def test_what_is_wrong_is_told_by_its_key(
    name: str, values: Callable[[Path], dict[str, object]], words: list[str], tmp_path: Path
) -> None:
    with pytest.raises(UserError) as caught:
        composed(name, values(tmp_path))
    for word in words:
        assert word in str(caught.value)
