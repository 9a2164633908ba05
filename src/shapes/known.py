"""What a correct picture shows, for prompts that come as bare words: looked up among the world's own wordings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from typing import Any

from src.shapes.wordings import forms
from src.shapes.worlds import SMALL, WORLDS, World
from src.values import PromptRecord


@lru_cache
def _scenes(world: World) -> Mapping[str, tuple[str, dict[str, Any]]]:
    """Wording -> (kind, scene) for every combination of every form."""
    return {
        text: (form.kind, {**form.requirement(params).to_json(), "form": form.name})
        for form in forms(world).values()
        for params in form.combinations()
        for text in form.wordings(params)
    }


def completed(record: PromptRecord, world: World = SMALL) -> PromptRecord:
    """The record with its kind and scene, where it has no scene but its words are a world's; else as it is.

    The words are taken as `world` means them ("every colour but red" depends on it), and where it does not know
    them, as another does.
    """
    if record.scene:
        return record
    words = " ".join(record.prompt.lower().rstrip(". ").split())
    for one in (world, *WORLDS.values()):
        if words in _scenes(one):
            kind, scene = _scenes(one)[words]
            return replace(record, task_type=kind, scene=scene)
    return record
