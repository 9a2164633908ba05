"""What a field of the schema declares besides its type: the values it takes, or that its text is taken as typed.

A declaration stands in the metadata of the dataclass field. `src.config.checks` reads ranges and rules,
`src.config.typed_words` the settings whose text is not for Hydra's grammar.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import Field, dataclass, field, fields, is_dataclass
from math import isfinite
from typing import Any, get_args, get_type_hints

_RANGE, _TYPED, _PARTS, _RULE = "range", "typed", "parts", "rule"
# What stands behind `=`, where it is taken as typed.
PATH = "path"  # a path, or a name that may be one; ~ is expanded
PATHS = "paths"  # one path, a list of them, or {name: path}
TEXT = "text"  # words: a prompt, a question, an address

# Ranges that many settings share.
SEED = {"ge": 0, "le": 2**63 - 1}  # what a generator of torch takes, on every platform
COUNT = {"ge": 1, "le": 10**9}
FROM_ZERO = {"ge": 0, "le": 10**9}
BATCH = {"ge": 1, "le": 10**6}
WEIGHT = {"ge": 0, "le": 1e6}  # products with such numbers stay far inside of float32
SECONDS = {"ge": 1e-3, "le": 1e6}  # a socket waits for no more than 2^31 milliseconds
TEMPERATURE = {"ge": 0.01, "le": 100}  # logits divided by it stay numbers that float32 tells apart
GUIDANCE: dict[str, Any] = {"ge": 1, "le": 100, "why": "1 is no guidance"}
TOP_K = {"ge": 1, "le": 10**6}
TOP_P: dict[str, Any] = {"ge": 1e-6, "le": 1, "why": "the share that is kept; null for no truncation"}
PORT = {"ge": 1024, "le": 65535}


@dataclass(frozen=True, slots=True)
class Range:
    """The numbers a setting takes: finite, at least `ge`, more than `gt`, at most `le`, less than `lt`.

    `why` is said with the range, in brackets.
    """

    ge: float | None = None
    gt: float | None = None
    le: float | None = None
    lt: float | None = None
    why: str = ""

    def holds(self, value: float) -> bool:
        """Whether `value` lies in the range; False for NaN and infinities."""
        # A whole number is compared as it is: not every one fits into a float.
        return (
            (isinstance(value, int) or isfinite(value))
            and (self.ge is None or value >= self.ge)
            and (self.gt is None or value > self.gt)
            and (self.le is None or value <= self.le)
            and (self.lt is None or value < self.lt)
        )

    def told(self, kind: str) -> str:
        """The range in words; `kind` is what is bounded, as in ``an integer``."""
        if self.ge is not None and self.ge == self.le:
            words = f"{self.ge:g}"
        else:
            bounds = ((">=", self.ge), (">", self.gt), ("<=", self.le), ("<", self.lt))
            limits = [f"{sign} {_shown(bound)}" for sign, bound in bounds if bound is not None]
            words = f"{kind} {' and '.join(limits)}"
        return words + (f" ({self.why})" if self.why else "")


@dataclass(frozen=True, slots=True)
class Rule:
    """What a value has to be beyond its type and range: `holds` says whether it is, `expected` says it in words."""

    holds: Callable[[Any], bool]
    expected: str


def one_of(*choices: str) -> Rule:
    """One of a few words."""
    return Rule(lambda value: value in choices, "one of " + ", ".join(choices))


def _is_file_name(text: str) -> bool:
    return text not in ("", ".", "..") and not set(text) & set("/\\\0") and len(text.encode(errors="replace")) <= 200


def _are_devices(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return len(value) > 0 and all(is_whole(item) and 0 <= item < MOST_DEVICES for item in value)
    if isinstance(value, str):
        numbers = value.removesuffix(",").split(",")
        return value in ("auto", "-1") or all(part.isdecimal() and len(part) <= 4 for part in numbers)
    return is_whole(value) and (value == -1 or 1 <= value <= MOST_DEVICES)


def is_whole(value: Any) -> bool:
    """Whether `value` is an integer, and not a bool."""
    return isinstance(value, int) and not isinstance(value, bool)


def not_empty(what: str) -> Rule:
    """A list that holds something."""
    return Rule(lambda value: len(value) > 0, f"at least one {what}")


MOST_DEVICES = 1024  # of one machine: Lightning makes a list of as many
DEVICES = Rule(_are_devices, f"auto, how many (1 to {MOST_DEVICES}, -1 for all), or a list of their numbers")
FILE_NAME = Rule(_is_file_name, "the name of a folder: no slash, at most 200 bytes (run.dir takes a path)")
AUTO_OR_SWITCH = Rule(lambda value: value == "auto" or isinstance(value, bool), "one of auto, true, false")
PAIR = Rule(lambda value: len(value) == 2, "two numbers in [0, 1)")
# Choices of several commands.
DTYPE = one_of("auto", "float32", "bfloat16")
BACKEND = one_of("auto", "triton", "torch")


def _shown(bound: float) -> str:
    return str(bound) if isinstance(bound, int) else f"{bound:g}"


@dataclass(frozen=True, slots=True)
class Setting:
    """A field of the schema as the walk over it finds it.

    `number` is int or float, also for lists and dicts of such, None for what is no number. `typed` is PATH, PATHS, TEXT
    or None. `parts` are the settings, by name, of the parts that the field holds. `rule` is what types cannot say.
    """

    key: str
    number: type | None
    range: Range | None
    typed: str | None
    parts: dict[str, Setting] = field(default_factory=dict)
    rule: Rule | None = None

    def holds(self, number: float) -> bool:
        """Whether `number` lies in the range, where there is one."""
        return self.range is None or self.range.holds(number)

    def told(self, several: bool = False) -> str:
        """What number, or with `several` what numbers, the setting takes, in words."""
        assert self.range is not None
        names = ("integers", "numbers") if several else ("an integer", "a number")
        return self.range.told(names[0] if self.number is int else names[1])


def number_field(default: Any, rule: Any = None, **bounds: Any) -> Any:
    """A field for a number, or a list or dict of numbers, in the range of `bounds` (see `Range`)."""
    return _field(default, **{_RANGE: Range(**bounds), _RULE: rule})


def ruled_field(default: Any, rule: Rule) -> Any:
    """A field for a value that has to satisfy `rule`; null is not checked."""
    return _field(default, **{_RULE: rule})


def choice_field(default: str, *choices: str) -> Any:
    """A field for one of `choices`, the default among them."""
    return ruled_field(default, one_of(*choices))


def path_field(default: Any = None) -> Any:
    """A field for a path (or a name that may be one): taken as typed, ``~`` expanded."""
    return _field(default, **{_TYPED: PATH})


def paths_field(default: Any = None) -> Any:
    """A field for a path, a list of paths, or {name: path}."""
    return _field(default, **{_TYPED: PATHS})


def text_field(default: Any = None) -> Any:
    """A field for words that are taken as typed."""
    return _field(default, **{_TYPED: TEXT})


def parts_field(default: Any, **known: Any) -> Any:
    """A field for parts by name; `known` are fields of their settings, as the functions above make them."""
    return _field(default, **{_PARTS: {name: _of_part(name, item) for name, item in known.items()}})


def _of_part(name: str, item: Field[Any]) -> Setting:
    kind = type(item.default) if type(item.default) in (int, float) else None
    return Setting(name, kind, item.metadata.get(_RANGE), item.metadata.get(_TYPED))


def _field(default: Any, **metadata: Any) -> Any:
    if isinstance(default, list | dict):
        return field(default_factory=lambda: type(default)(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def settings(schema: type, prefix: str = "") -> Iterator[Setting]:
    """Every field of `schema` and of the dataclasses in it, the containing one first; keys begin with `prefix`."""
    hints = get_type_hints(schema)
    for item in fields(schema):
        yield _setting(prefix + item.name, item, hints[item.name])
        if (inner := nested(item)) is not None:
            yield from settings(inner, f"{prefix}{item.name}.")


def nested(item: Field[Any]) -> type | None:
    """The dataclass that stands in a field by default, if there is one."""
    factory = item.default_factory
    return factory if isinstance(factory, type) and is_dataclass(factory) else None


def _setting(key: str, item: Field[Any], hint: Any) -> Setting:
    leaves = _leaves(hint)
    kind = next((kind for kind in (float, int) if kind in leaves), None)
    about = item.metadata
    return Setting(key, kind, about.get(_RANGE), about.get(_TYPED), about.get(_PARTS, {}), about.get(_RULE))


def _leaves(hint: Any) -> set[Any]:
    inside = get_args(hint)
    return set().union(*map(_leaves, inside)) if inside else {hint}
