"""What a prompt asks of its picture, for the experts that judge one thing at a time."""

from __future__ import annotations

from typing import Literal

from src.values import PromptRecord

Aspect = Literal["object", "numeracy", "spatial"]

# The released training set's task types that are about the objects and their attributes. Some of its
# "complex" prompts also have a relation; the released scores do not use it.
OBJECT_TASKS = frozenset({"color", "shape", "texture", "non", "complex", "object"})


def aspect_of(record: PromptRecord) -> Aspect:
    """Which of the three a prompt is scored for: its relation, its counts, or else just its objects.

    A relation takes precedence over counts. A record of a released object task is about its objects, whatever else it
    has.
    """
    if record.task_type in OBJECT_TASKS:
        return "object"
    if record.spatial is not None:
        return "spatial"
    return "numeracy" if record.counts else "object"


def objects_of(record: PromptRecord) -> tuple[str, ...]:
    """The objects that a detector must look for, each once: the nouns, then those named only in the metadata."""
    named = list(record.nouns)
    aspect = aspect_of(record)
    if aspect == "spatial" and record.spatial is not None:
        named += [record.spatial.first, record.spatial.second]
    elif aspect == "numeracy":
        named += [count.name for count in record.counts]
    return tuple(dict.fromkeys(named))
