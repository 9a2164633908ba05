"""What a prompt asks for: objects with their numbers and, where the prompt names them, places or a relation.

A `Requirement` is what `PromptRecord.scene` holds as JSON-like data. The judge checks pictures against
it; the warm start arranges scenes that satisfy it.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from src.shapes.worlds import SMALL, ObjectKind, Scene, World

#: Locality -> (axis, sign): `first` stands on the sign's side of `second` along the axis (0 rows, 1 columns).
LOCALITIES: Mapping[str, tuple[int, int]] = {"left of": (1, -1), "right of": (1, 1), "above": (0, -1), "below": (0, 1)}
OPPOSITE: Mapping[str, str] = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}


@dataclass(frozen=True, slots=True)
class RequiredObject:
    """Exactly `number` of `kind`; with `place` (a cell, row or column) all of them stand there."""

    kind: ObjectKind
    number: int = 1
    place: str | None = None


@dataclass(frozen=True, slots=True)
class RequiredRelation:
    """Object number `first` of the requirement stands at `locality` relative to number `second`."""

    first: int
    second: int
    locality: str


@dataclass(frozen=True, slots=True)
class Requirement:
    """Everything a correct picture shows, and nothing else may be in it. Kinds do not repeat."""

    objects: tuple[RequiredObject, ...]
    relation: RequiredRelation | None = None

    @property
    def total(self) -> int:
        """How many objects a correct picture holds."""
        return sum(item.number for item in self.objects)

    def combination(self) -> str:
        """A name equal for all wordings that ask for the same picture; splits are disjoint in it."""
        items = sorted(f"{item.number} {item.kind.name} @{item.place or 'anywhere'}" for item in self.objects)
        if self.relation is None:
            return " + ".join(items)
        first, second = self.objects[self.relation.first].kind.name, self.objects[self.relation.second].kind.name
        locality = self.relation.locality
        if locality in ("right of", "below"):
            first, second, locality = second, first, OPPOSITE[locality]
        return " + ".join(items) + f" : {first} {locality} {second}"

    def to_json(self) -> dict[str, Any]:
        """The JSON-like form kept in `PromptRecord.scene`."""
        objects = []
        for item in self.objects:
            entry: dict[str, Any] = {"color": item.kind.color, "shape": item.kind.shape, "number": item.number}
            if item.place is not None:
                entry["place"] = item.place
            objects.append(entry)
        scene: dict[str, Any] = {"objects": objects}
        if self.relation is not None:
            relation = self.relation
            scene["relation"] = {"first": relation.first, "second": relation.second, "locality": relation.locality}
        return scene

    @classmethod
    def from_json(cls, scene: Mapping[str, Any], world: World = SMALL) -> Requirement:
        """Read `PromptRecord.scene`. Raises ValueError that names the key and value in fault."""
        listed = scene.get("objects", ())
        if not isinstance(listed, Sequence) or isinstance(listed, str):
            raise ValueError(f"scene: key 'objects' is {listed!r}; expected a list of objects")
        objects = tuple(_read_object(entry, world) for entry in listed)
        if not objects:
            raise ValueError("scene: key 'objects' is missing or empty; list the objects a correct picture shows")
        if len({item.kind for item in objects}) != len(objects):
            raise ValueError(f"scene: key 'objects' names a kind twice ({objects}); combine the numbers")
        relation = scene.get("relation")
        if relation is None:
            return cls(objects)
        keys = ("first", "second", "locality")
        if not isinstance(relation, Mapping) or not set(keys) <= set(relation):
            raise ValueError(f"scene: key 'relation' is {relation!r}; expected an object with {', '.join(keys)}")
        first, second = (_whole(relation[key], f"relation {key}") for key in keys[:2])
        read = RequiredRelation(first, second, str(relation["locality"]))
        if read.locality not in LOCALITIES:
            raise ValueError(f"scene: relation locality {read.locality!r}; use one of {', '.join(LOCALITIES)}")
        if not {read.first, read.second} <= set(range(len(objects))) or read.first == read.second:
            raise ValueError(f"scene: relation {dict(relation)} must name two different objects by their number")
        return cls(objects, read)


def _whole(value: object, what: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError(f"scene: {what} is {value!r}; expected a whole number")
    return value


def _read_object(entry: object, world: World) -> RequiredObject:
    if not isinstance(entry, Mapping):
        raise ValueError(f"scene: object {entry!r}: expected an object with color, shape, number, place")
    kind = ObjectKind(str(entry.get("color")), str(entry.get("shape")))
    if kind not in world.kind_index:
        raise ValueError(f"scene: object {dict(entry)} has a colour or shape the {world.name} world cannot draw")
    number, place = _whole(entry.get("number", 1), f"object {dict(entry)}: number"), entry.get("place")
    if not 1 <= number <= world.cells:
        raise ValueError(f"scene: object {dict(entry)}: number {number} must be 1 to {world.cells}")
    if place is not None:
        if not isinstance(place, str):
            raise ValueError(f"scene: object {dict(entry)}: place {place!r}; expected its name")
        world.place_cells(place)
    return RequiredObject(kind, number, place)


def stands(first: int, second: int, locality: str, world: World = SMALL) -> bool:
    """Whether cell `first` stands at `locality` relative to cell `second` (rows or columns strictly differ)."""
    axis, sign = LOCALITIES[locality]
    positions = [divmod(cell, world.grid)[axis] for cell in (first, second)]
    return (positions[0] - positions[1]) * sign > 0


def arrange(requirement: Requirement, rng: random.Random, world: World = SMALL) -> Scene:
    """A scene that satisfies the requirement, uniform over the valid placements of its objects.

    Objects come in the requirement's order, those of one kind row by row. Raises ValueError when no
    placement exists.
    """
    if requirement.total > world.cells:
        raise ValueError(f"{requirement.total} objects do not fit into {world.cells} cells")
    for _ in range(1000):
        scene = _try_to_arrange(requirement, rng, world)
        if scene is not None:
            return scene
    raise ValueError(f"found no placement for {requirement.combination()}")


def satisfied(requirement: Requirement, scene: Scene, world: World = SMALL) -> bool:
    """Whether a scene shows exactly what is required and nothing else."""
    if sum(item.number for item in requirement.objects) != len(scene):
        return False
    cells_of = [[cell for cell, kind in scene.items() if kind == item.kind] for item in requirement.objects]
    for item, cells in zip(requirement.objects, cells_of, strict=True):
        if len(cells) != item.number or (item.place and not set(cells) <= set(world.place_cells(item.place))):
            return False
    relation = requirement.relation
    return relation is None or all(
        stands(a, b, relation.locality, world) for a in cells_of[relation.first] for b in cells_of[relation.second]
    )


def _try_to_arrange(requirement: Requirement, rng: random.Random, world: World) -> Scene | None:
    free = set(range(world.cells))
    scene: dict[int, ObjectKind] = {}
    cells_of = []
    for item in requirement.objects:
        allowed = sorted(free & set(world.place_cells(item.place))) if item.place else sorted(free)
        if len(allowed) < item.number:
            return None
        cells = sorted(rng.sample(allowed, item.number))
        cells_of.append(cells)
        free -= set(cells)
        scene.update(dict.fromkeys(cells, item.kind))
    relation = requirement.relation
    if relation is not None:
        pairs = [(a, b) for a in cells_of[relation.first] for b in cells_of[relation.second]]
        if not all(stands(a, b, relation.locality, world) for a, b in pairs):
            return None
    return scene
