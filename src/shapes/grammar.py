"""The plan's language: every object with its place, such as ``red circle top-left; blue square center``.

Three tokens an object: the ``;`` that separates two objects belongs to the place word before it.
"""

from __future__ import annotations

from src.shapes.worlds import SMALL, ObjectKind, Scene, World

SEPARATOR = ";"


class PlanError(ValueError):
    """A text that is no plan."""


def format_plan(scene: Scene, world: World = SMALL) -> str:
    """The plan that lists the scene's objects in the scene's own order; "" for an empty scene."""
    return f"{SEPARATOR} ".join(f"{kind.color} {kind.shape} {world.places[cell]}" for cell, kind in scene.items())


def parse_plan(text: str, world: World = SMALL) -> dict[int, ObjectKind]:
    """The scene a plan describes, in the plan's order: the exact inverse of `format_plan`.

    Raises PlanError when an object is not "colour shape place" or a place is used twice.
    """
    scene: dict[int, ObjectKind] = {}
    if not text.strip():
        return scene
    for part in text.split(SEPARATOR):
        words = part.split()
        known = [word in names for word, names in zip(words, (world.colors, world.bitmaps, world.places), strict=False)]
        if len(words) != 3 or not all(known):
            raise PlanError(f"{part.strip()!r} is not 'colour shape place' in the plan {text!r}")
        cell = world.places.index(words[2])
        if cell in scene:
            raise PlanError(f"the place {words[2]!r} is used twice in the plan {text!r}")
        scene[cell] = ObjectKind(words[0], words[1])
    return scene
