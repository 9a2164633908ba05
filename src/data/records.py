"""From one JSON object to a `PromptRecord`, in the format of T2I-R1's released training set.

Fields: ``prompt`` (required), ``task_type``, ``nouns`` and ``attr_nouns`` (lists of strings),
``spatial_info`` {obj1, obj2, locality}, ``numeracy_info`` [{obj_name, num}], and ``scene``, a free object
for worlds of their own. The released set has the task types spatial, numeracy, color, complex, non,
texture, shape and object; any other string is allowed.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from src.data.words import problem_of
from src.values import ObjectCount, PromptRecord, SpatialRelation

FIELDS = ("prompt", "task_type", "nouns", "attr_nouns", "spatial_info", "numeracy_info", "scene")


class PromptDataError(ValueError):
    """Prompt data is wrong; the message says where, which field, what was expected and what was found."""


def parse_record(data: object, where: str) -> PromptRecord:
    """The record that a decoded JSON value describes.

    `where` (such as ``prompts.jsonl:12``) starts every message. Raises PromptDataError for a value that is not an
    object, a missing or empty prompt, a field of the wrong kind, and an unknown field: a mistyped name
    would otherwise be dropped silently, and with it the experts that need it.
    """
    if not isinstance(data, Mapping):
        raise PromptDataError(f"{where}: expected a JSON object with a 'prompt', got {_shown(data)}")
    unknown = [name for name in data if name not in FIELDS]
    if unknown:
        raise PromptDataError(
            f"{where}: unknown field {unknown[0]!r}; known are {', '.join(FIELDS)} (put your own data under 'scene')"
        )
    return PromptRecord(
        prompt=_text(data, "prompt", where),
        task_type=_text(data, "task_type", where) if "task_type" in data else "none",
        nouns=_texts(data, "nouns", where),
        attribute_nouns=_texts(data, "attr_nouns", where),
        spatial=_spatial(data, where),
        counts=_counts(data, where),
        scene=_object(data["scene"], "scene", where) if data.get("scene") is not None else {},
        place=where,
    )


def _shown(value: object) -> str:
    text = repr(value)
    return f"{text if len(text) <= 60 else text[:57] + '...'} ({type(value).__name__})"


def _wrong(where: str, name: str, expected: str, value: object, problem: str = "") -> PromptDataError:
    return PromptDataError(f"{where}: field {name!r}: expected {expected}, got {_shown(value)}{problem}")


def _text(data: Mapping[str, Any], name: str, where: str, path: str | None = None) -> str:
    path = path or name
    if name not in data:
        raise PromptDataError(f"{where}: field {path!r} is missing; expected a non-empty string")
    value = data[name]
    if not _is_filled(value):
        problem = f", which {problem_of(value)}" if isinstance(value, str) and value.strip() else ""
        raise _wrong(where, path, "a non-empty string", value, problem)
    # In a large file every word except the prompt repeats: keep one copy.
    return value if path == "prompt" else sys.intern(value)


def _is_filled(value: object) -> bool:
    """Whether it is a string with something in it, and of letters only: JSON can spell anything."""
    return isinstance(value, str) and problem_of(value) is None


def _texts(data: Mapping[str, Any], name: str, where: str) -> tuple[str, ...]:
    values = data.get(name)
    if values is None:
        return ()
    if not isinstance(values, list) or not all(map(_is_filled, values)):
        raise _wrong(where, name, "a list of non-empty strings without control characters", values)
    return tuple(map(sys.intern, values))


def _object(value: object, name: str, where: str, keys: tuple[str, ...] = ()) -> Mapping[str, Any]:
    """`value` as an object; with `keys`, one that has exactly these."""
    if not isinstance(value, Mapping) or (keys and set(value) != set(keys)):
        raise _wrong(where, name, f"an object with {', '.join(keys)}" if keys else "an object", value)
    return value


def _spatial(data: Mapping[str, Any], where: str) -> SpatialRelation | None:
    if data.get("spatial_info") is None:
        return None
    keys = ("obj1", "obj2", "locality")
    info = _object(data["spatial_info"], "spatial_info", where, keys)
    return SpatialRelation(*(_text(info, key, where, f"spatial_info.{key}") for key in keys))


def _counts(data: Mapping[str, Any], where: str) -> tuple[ObjectCount, ...]:
    items = data.get("numeracy_info")
    if items is None:
        return ()
    if not isinstance(items, list):
        raise _wrong(where, "numeracy_info", "a list of objects with obj_name, num", items)
    return tuple(_count(item, f"numeracy_info[{i}]", where) for i, item in enumerate(items))


def _count(item: object, path: str, where: str) -> ObjectCount:
    info = _object(item, path, where, ("obj_name", "num"))
    number = info["num"]
    # bool is an int in Python, but `true` is not a count.
    if not isinstance(number, int) or isinstance(number, bool) or number < 1:
        raise _wrong(where, f"{path}.num", "a whole number >= 1", number)
    return ObjectCount(_text(info, "obj_name", where, f"{path}.obj_name"), number)
