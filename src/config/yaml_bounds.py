"""YAML that may be somebody else's: its size, its depth and what its aliases stand for, bounded before it is read.

Two hundred characters of nested aliases stand for a billion nodes, and PyYAML builds what it is told to.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.resources.abc import Traversable
from pathlib import Path

import yaml

from src.config.errors import UserError
from src.config.schema import CONFIGS

MAX_BYTES = 2**18  # our own configs have 5 KB
MAX_DEPTH = 40  # collections within each other
# Characters of all scalars, plus NODE for each node, after every alias was replaced by what it stands for.
MAX_EXPANDED = 2**20
NODE = 32
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
# Called with the dotted key, the text and the line (from 1) of each scalar that is a value.
EachValue = Callable[[str, str, int], None]


@dataclass(slots=True)
class _Collection:
    """A mapping or list that is being read: its anchor, the size before it, and where its next value stands."""

    anchor: str | None
    before: int
    is_mapping: bool
    place: str
    key: str | None = None  # of a mapping, once its key was read
    number: int = 0  # of a list


def read_bounded(path: Path | Traversable, name: str | None = None) -> str:
    """The text of a YAML file; `name` is what messages call it, its path if None.

    Raises:
        UserError: for a file that cannot be read, is longer than MAX_BYTES, or is not UTF-8.
    """
    name = name or str(path)
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise UserError(f"{name}: cannot be read ({error.strerror or error})") from error
    if len(data) > MAX_BYTES:
        raise UserError(f"{name}: longer than {MAX_BYTES} bytes, which no config is; give another file")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{name}: not a text file in UTF-8 (byte {error.start}); it is damaged, or not YAML") from error


def check_yaml(text: str, file: str, plain: bool = False, each: EachValue | None = None) -> None:
    """Check YAML without building anything of it.

    file: its name, for messages. plain: refuse anchors, aliases and tags, which our own files never hold.

    Raises:
        UserError: naming file and line, for what is not YAML, too deep, too large, or an alias of itself.
    """
    inside: list[_Collection] = []
    sizes: dict[str, int] = {}  # what an anchor stands for
    total = 0
    try:
        for event in yaml.parse(text, Loader=_LOADER):
            assert event.start_mark is not None  # of events read from a text
            line = event.start_mark.line + 1
            if isinstance(event, yaml.CollectionEndEvent):
                ended = inside.pop()
                if ended.anchor is not None:
                    sizes[ended.anchor] = total - ended.before
                continue
            if not isinstance(event, yaml.NodeEvent):
                continue
            if plain:
                _refuse_unusual(event, f"{file}:{line}")
            place, is_key = _next_place(inside, event)
            if isinstance(event, yaml.AliasEvent):
                if event.anchor not in sizes:
                    raise UserError(f"{file}:{line}: {place}: *{event.anchor} stands for nothing that ends before it")
                total += sizes[event.anchor]
            elif isinstance(event, yaml.ScalarEvent):
                size = NODE + len(event.value)
                total += size
                if event.anchor is not None:
                    sizes[event.anchor] = size
                if each is not None and not is_key:
                    each(place, event.value, line)
            else:
                inside.append(_Collection(event.anchor, total, isinstance(event, yaml.MappingStartEvent), place))
                total += NODE
            if len(inside) > MAX_DEPTH:
                raise UserError(f"{file}:{line}: more than {MAX_DEPTH} levels deep, which no config is")
            if total > MAX_EXPANDED:
                raise UserError(f"{file}:{line}: stands for more than a config can hold (aliases: *name); shorten it")
    except yaml.YAMLError as error:
        raise UserError(explain_yaml(error, file)) from error


def _next_place(inside: list[_Collection], event: yaml.NodeEvent) -> tuple[str, bool]:
    """The dotted key at which `event` stands, and whether it is itself the key of a mapping."""
    if not inside:
        return "", False
    parent = inside[-1]
    if not parent.is_mapping:
        parent.number += 1
        return f"{parent.place}[{parent.number - 1}]", False
    if parent.key is None:
        parent.key = event.value if isinstance(event, yaml.ScalarEvent) else "?"
        return parent.place, True
    place = f"{parent.place}.{parent.key}" if parent.place else parent.key
    parent.key = None
    return place, False


def _refuse_unusual(event: yaml.NodeEvent, where: str) -> None:
    if event.anchor is not None:
        sign = "*" if isinstance(event, yaml.AliasEvent) else "&"
        raise UserError(f"{where}: {sign}{event.anchor}: anchors and aliases are not allowed here; write the value out")
    tag = getattr(event, "tag", None)
    if tag is not None and tag != "!":  # "!" is a quoted text's
        raise UserError(f"{where}: {tag}: tags are not allowed here; write the plain value")


def explain_yaml(error: Exception, file: str | None = None) -> str:
    """A config file that is not YAML: file, line and what the parser expected.

    file: its name, where the parser was given the text alone.
    """
    mark = getattr(error, "problem_mark", None)
    name = file or (None if mark is None else mark.name)
    line = "" if mark is None else f":{mark.line + 1}"
    # A character that YAML does not allow has a reason and no problem.
    problem = getattr(error, "problem", None) or getattr(error, "reason", None) or error
    return f"{'' if name is None else f'{short_path(name)}{line}: '}not valid YAML: {problem}"


def short_path(path: str | Path) -> str:
    """A path below the checkout without the part above it."""
    text = str(path)
    return text.removeprefix(str(CONFIGS.parent) + "/")
