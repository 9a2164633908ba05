"""The judge: looks at decoded pixels, recognises what stands in each cell, compares with what was asked.

It never sees plans or tokens. Each aspect is a score in [0, 1], NaN where it does not apply. With c(k)
objects recognised and r(k) required of kind k, and R = sum of all r:

presence  share of the required kinds that are there at all
colour    sum over colours of min(c, r) / R, shapes ignored
shape     the same over shapes, colours ignored
count     mean over required kinds of max(0, 1 - |c(k) - r(k)| / r(k)); where more than one of a kind is asked
relation  1 where the relation holds between all objects of the two kinds; for a named place the share of
          the required objects that stand there; where the prompt names a relation or a place
no_extra  max(0, 1 - extra / R), extra = sum over k of max(0, c(k) - r(k)) + cells that show nothing clear
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from src.shapes.requirements import LOCALITIES, Requirement
from src.shapes.scenes import cell_templates, pixels_to_cells
from src.shapes.worlds import SMALL, WORLDS, ObjectKind, World
from src.values import PromptRecord

ASPECTS = ("presence", "colour", "shape", "count", "relation", "no_extra")

#: A cell is recognised when its distance to the nearest clean cell is below this share of the smallest
#: distance between two clean cells; below 0.5 no cell is near two of them.
TOLERANCE = 0.4


@dataclass(frozen=True, slots=True)
class Judgement:
    """aspects: by name of `ASPECTS`, (N,) float32, NaN = does not apply; all_correct: (N,) bool."""

    aspects: Mapping[str, Tensor]
    all_correct: Tensor


@lru_cache
def _recognition(world: World) -> tuple[Tensor, float]:
    templates = cell_templates(world).flatten(1)
    distances = torch.pdist(templates)
    return templates, TOLERANCE * float(distances.min())


def world_of(pixels: Tensor) -> World:
    """The world whose pictures are as large as these (N, 3, H, H). Raises ValueError where there is none."""
    for world in WORLDS.values():
        if pixels.shape[2:] == (world.image_pixels, world.image_pixels):
            return world
    sizes = " or ".join(f"(N, 3, {world.image_pixels}, {world.image_pixels})" for world in WORLDS.values())
    raise ValueError(f"pixels: shape {tuple(pixels.shape)}, expected {sizes}, the drawn worlds' pictures")


def recognise(pixels: Tensor, world: World = SMALL) -> Tensor:
    """What stands in each cell: (N, C) int64, a kind's number, `World.empty` or `World.unclear`.

    pixels: (N, 3, H, H) floating, in [0, 1]. Raises ValueError for another image size.
    """
    if pixels.dim() != 4 or tuple(pixels.shape[1:]) != (3, world.image_pixels, world.image_pixels):
        expected = f"(N, 3, {world.image_pixels}, {world.image_pixels}) of the {world.name} world"
        raise ValueError(f"pixels: shape {tuple(pixels.shape)}, expected {expected}")
    templates, tolerance = _recognition(world)
    cells = pixels_to_cells(pixels.detach().to("cpu", torch.float32), world).flatten(2)
    distances, labels = torch.cdist(cells, templates, compute_mode="donot_use_mm_for_euclid_dist").min(dim=2)
    # The comparison is written so that a NaN pixel makes its cell unclear.
    return torch.where(distances <= tolerance, labels, torch.full_like(labels, world.unclear))


@dataclass(frozen=True, slots=True)
class _Compiled:
    """A requirement as tensors: numbers (K,) float32, allowed (K, C) bool, and the relation's parts."""

    numbers: Tensor
    allowed: Tensor
    placed: bool
    first: int
    second: int
    axis: int
    sign: int


@lru_cache(maxsize=16384)
def _compile(requirement: Requirement, world: World) -> _Compiled:
    numbers = torch.zeros(len(world.kinds))
    allowed = torch.ones(len(world.kinds), world.cells, dtype=torch.bool)
    for item in requirement.objects:
        kind = world.kind_index[item.kind]
        numbers[kind] += item.number
        if item.place is not None:
            allowed[kind] = False
            allowed[kind, list(world.place_cells(item.place))] = True
    placed = any(item.place is not None for item in requirement.objects)
    relation = requirement.relation
    if relation is None:
        return _Compiled(numbers, allowed, placed, 0, 0, 0, 0)
    first, second = (world.kind_index[requirement.objects[index].kind] for index in (relation.first, relation.second))
    return _Compiled(numbers, allowed, placed, first, second, *LOCALITIES[relation.locality])


def judge(pixels: Tensor, records: Sequence[PromptRecord], world: World = SMALL) -> Judgement:
    """Judge pixels (N, 3, H, H) in [0, 1] against the `scene` of N records.

    Raises ValueError when the numbers differ or a record's scene cannot be read.
    """
    if len(records) != pixels.shape[0]:
        raise ValueError(f"judge: {pixels.shape[0]} images but {len(records)} records")
    compiled = [_compile(Requirement.from_json(record.scene, world), world) for record in records]
    return _compare(recognise(pixels, world), compiled, world)


def judge_labels(labels: Tensor, requirements: Sequence[Requirement], world: World = SMALL) -> Judgement:
    """The same for cells already recognised, (N, C) int64."""
    return _compare(labels, [_compile(requirement, world) for requirement in requirements], world)


@lru_cache
def _marginals(world: World) -> tuple[Tensor, Tensor]:
    colors = sorted({kind.color for kind in world.kinds})
    shapes = sorted({kind.shape for kind in world.kinds})

    def indicator(names: list[str], attribute: str) -> Tensor:
        return torch.tensor([[float(getattr(kind, attribute) == name) for name in names] for kind in world.kinds])

    return indicator(colors, ObjectKind._fields[0]), indicator(shapes, ObjectKind._fields[1])


def _compare(labels: Tensor, compiled: Sequence[_Compiled], world: World) -> Judgement:
    required = torch.stack([item.numbers for item in compiled])
    allowed = torch.stack([item.allowed for item in compiled])
    standing = torch.nn.functional.one_hot(labels, world.unclear + 1)[..., : world.empty]
    standing = standing.movedim(1, 2).bool()  # (N, K, C)
    counts = standing.sum(2).float()
    total, wanted = required.sum(1), required > 0
    kinds = wanted.sum(1)
    unclear = (labels == world.unclear).sum(1)
    extra = (counts - required).clamp_min(0).sum(1) + unclear

    colors, shapes = _marginals(world)
    off = (counts - required).abs() / required.clamp_min(1)
    count = torch.where(wanted, (1 - off).clamp_min(0), 0.0).sum(1) / kinds
    relation, place = _relation(standing, compiled, world), _place(standing, allowed, required, compiled)
    aspects = {
        "presence": (wanted & (counts > 0)).sum(1) / kinds,
        "colour": torch.minimum(counts @ colors, required @ colors).sum(1) / total,
        "shape": torch.minimum(counts @ shapes, required @ shapes).sum(1) / total,
        "count": torch.where((required > 1).any(1), count, torch.nan),
        "relation": torch.where(relation.isnan(), place, relation),
        "no_extra": (1 - extra / total).clamp_min(0),
    }
    exact = (counts == required).all(1) & (unclear == 0)
    in_place = torch.where(relation.isnan(), True, relation == 1) & torch.where(place.isnan(), True, place == 1)
    return Judgement(aspects, exact & in_place)


def _place(standing: Tensor, allowed: Tensor, required: Tensor, compiled: Sequence[_Compiled]) -> Tensor:
    """(N,) share of the required objects that stand at their place, NaN without one."""
    right = torch.minimum((standing & allowed).sum(2).float(), required).sum(1) / required.sum(1)
    return torch.where(torch.tensor([item.placed for item in compiled]), right, torch.nan)


def _relation(standing: Tensor, compiled: Sequence[_Compiled], world: World) -> Tensor:
    """(N,) 1 where every object of the first kind stands right to every one of the second, else 0; NaN without."""
    rows = torch.arange(len(compiled))
    cells = torch.arange(world.cells)
    coordinates = torch.stack([cells // world.grid, cells % world.grid])  # (2, C)
    signs = torch.tensor([item.sign for item in compiled])
    position = coordinates[torch.tensor([item.axis for item in compiled])] * signs[:, None]  # (N, C)
    first = standing[rows, torch.tensor([item.first for item in compiled])]
    second = standing[rows, torch.tensor([item.second for item in compiled])]
    lowest = torch.where(first, position, world.cells).amin(1)
    highest = torch.where(second, position, -world.cells).amax(1)
    holds = first.any(1) & second.any(1) & (lowest > highest)
    return torch.where(signs != 0, holds.float(), torch.nan)
