"""What a GenEval prompt asks for: one line of evaluation_metadata.jsonl as values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from src.geneval.names import COLORS, OBJECTS, RELATIONS

COUNTING = "counting"  # the tag whose detections need more confidence


@dataclass(frozen=True, slots=True)
class Wanted:
    """At least `count` objects of a class, perhaps of a colour, perhaps `relation` to those of clause `target`."""

    name: str
    count: int
    color: str | None = None
    relation: str | None = None
    target: int | None = None


@dataclass(frozen=True, slots=True)
class Unwanted:
    """Fewer than `count` objects of a class."""

    name: str
    count: int


@dataclass(frozen=True, slots=True)
class Requirements:
    """Every clause of `include` and none of `exclude` is to be found; `metadata` is the line as it was read."""

    tag: str
    prompt: str
    include: tuple[Wanted, ...]
    exclude: tuple[Unwanted, ...]
    metadata: Mapping[str, Any]


def parse_requirements(data: object, where: str) -> Requirements:
    """The requirements of a decoded JSON value; `where` (such as ``metadata.jsonl:3``) starts every message.

    Raises:
        ValueError: for anything that is no line of GenEval's evaluation_metadata.jsonl.
    """
    if not isinstance(data, Mapping) or "tag" not in data or "prompt" not in data:
        raise ValueError(
            f"{where}: not a line of GenEval's evaluation_metadata.jsonl; expected an object with tag, prompt, include"
        )
    for key in ("tag", "prompt"):
        if not isinstance(data[key], str) or not data[key].strip():
            raise ValueError(f"{where}: {key}: expected a non-empty string, got {data[key]!r}")
    include, exclude = _list(data, "include", where), _list(data, "exclude", where)
    if not include and not exclude:
        raise ValueError(f"{where}: include and exclude are both empty; there is nothing to judge")
    return Requirements(
        data["tag"],
        data["prompt"],
        tuple(_wanted(clause, index, f"{where}: include[{index}]") for index, clause in enumerate(include)),
        tuple(_unwanted(clause, f"{where}: exclude[{index}]") for index, clause in enumerate(exclude)),
        data,
    )


def _list(data: Mapping[str, Any], key: str, where: str) -> list[Any]:
    value = data.get(key, [])
    if not isinstance(value, list):
        raise ValueError(f"{where}: {key}: expected a list of clauses, got {value!r}")
    return value


def _name_and_count(clause: object, where: str) -> tuple[str, int]:
    if not isinstance(clause, Mapping) or "class" not in clause or "count" not in clause:
        raise ValueError(f"{where}: expected an object with class and count, got {clause!r}")
    name, count = clause["class"], clause["count"]
    if name not in OBJECTS:
        raise ValueError(f"{where}: class={name!r}: not one of the {len(OBJECTS)} object names the detector knows")
    if not isinstance(count, int) or isinstance(count, bool) or count < 1:
        raise ValueError(f"{where}: count={count!r}: expected an integer >= 1")
    return name, count


def _unwanted(clause: object, where: str) -> Unwanted:
    return Unwanted(*_name_and_count(clause, where))


def _wanted(clause: object, index: int, where: str) -> Wanted:
    name, count = _name_and_count(clause, where)
    assert isinstance(clause, Mapping)
    color, position = clause.get("color"), clause.get("position")
    if color is not None and color not in COLORS:
        raise ValueError(f"{where}: color={color!r}: expected one of {', '.join(COLORS)}")
    if position is None:
        return Wanted(name, count, color)
    if not isinstance(position, list) or len(position) != 2 or position[0] not in RELATIONS:
        raise ValueError(f"{where}: position={position!r}: expected [{' | '.join(RELATIONS)}, number of the clause]")
    target = position[1]
    if not isinstance(target, int) or isinstance(target, bool) or not 0 <= target < index:
        raise ValueError(f"{where}: position={position!r}: expected the number of a clause before this one")
    return Wanted(name, count, color, position[0], target)
