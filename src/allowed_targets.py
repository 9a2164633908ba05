"""Which code a config may name: ``_target_`` leads to the parts of this project and to packages in ``plugins=[...]``.

A config may come from somebody else, within a run folder for example, and what ``_target_`` names is called. Its
text is checked before anything is imported, and what it leads to before anything is called.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from src.config import UserError

TARGET = "_target_"
# Where the parts of a run live; the rest of `src` writes files and starts processes.
PARTS = ("src.data", "src.loggers", "src.policies", "src.rewards", "lightning.pytorch.loggers")
# Hydra's own: launchers and sweepers, its plugins included.
HYDRAS = ("hydra._internal", "hydra_plugins")


def lies_under(path: str, prefixes: Iterable[str]) -> bool:
    """Whether a dotted path is one of `prefixes` or lies below one, by whole components."""
    return any(path == prefix or path.startswith(f"{prefix}.") for prefix in prefixes)


def targets(node: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of every ``_target_`` in plain Python data, at any depth, those in lists included."""
    if isinstance(node, Mapping):
        for name, value in node.items():
            place = f"{key}.{name}" if key else str(name)
            if name == TARGET:
                yield place, value
            else:
                yield from targets(value, place)
    elif isinstance(node, list | tuple):
        for number, value in enumerate(node):
            yield from targets(value, f"{key}[{number}]")


def check_plugins(plugins: Sequence[str]) -> None:
    """Raise UserError unless each is the dotted path of a package or module."""
    for prefix in plugins:
        if not _is_path(prefix):
            raise UserError(f"plugins={list(plugins)}: expected names of packages, as in plugins=[my_rewards]")


def check_targets(node: Any, plugins: Sequence[str] = (), key: str = "", allowed: Sequence[str] = PARTS) -> None:
    """Refuse plain config data with a ``_target_`` outside of `allowed` and `plugins`; nothing is imported.

    None stands for no target. key: where `node` stands in the config, for the message.

    Raises:
        UserError: naming key, target and the setting that would allow it.
    """
    check_plugins(plugins)
    for place, target in targets(node, key):
        if target is None:
            continue
        if not isinstance(target, str) or not _is_path(target):
            raise UserError(f"{place}={target!r}: expected the dotted path of a class or function")
        if not lies_under(target, (*allowed, *plugins)):
            raise _refusal(place, target, target)


def find_target(target: str, plugins: Sequence[str], key: str) -> Callable[..., Any]:
    """The class or function at the dotted path `target`, which lies in allowed code itself, not only its path.

    Only modules under an allowed prefix are imported, and their parents.

    Raises:
        UserError: for a target that is not allowed, or is no class or function (``src.data.module.os.system``).
        ImportError: if there is no such thing, or its module cannot be imported.
    """
    check_targets({TARGET: target}, plugins, key)
    allowed = (*PARTS, *plugins)
    module, rest = _module_of(target, allowed)
    found: Any = import_module(module)
    for name in rest:
        try:
            found = getattr(found, name)
        except AttributeError:
            raise ImportError(f"{target}: {module} has no {'.'.join(rest)}") from None
    # A class method is bound to its class; bound to anything else, it is no factory.
    is_factory = inspect.isclass(found) or inspect.isfunction(found) or inspect.ismethod(found)
    home = getattr(found, "__module__", None)
    if not is_factory or not isinstance(home, str) or not lies_under(home, allowed):
        raise _refusal(f"{key}.{TARGET}", target, home if is_factory and isinstance(home, str) else None)
    return found


def check_found(node: Any, plugins: Sequence[str], key: str) -> None:
    """`find_target` for every target in plain data: what Hydra's `instantiate` would call.

    Raises:
        UserError, ImportError: as `find_target` does.
    """
    check_targets(node, plugins, key)
    for place, target in targets(node, key):
        if target is not None:
            find_target(target, plugins, place.removesuffix(f".{TARGET}"))


def check_hydra(node: Mapping[str, Any], plugins: Sequence[str]) -> None:
    """Refuse what a sweep's ``hydra`` section would call besides Hydra's own launchers and sweepers.

    Python's logging, which ``hydra.job_logging`` configures, imports what stands behind ``()``, ``class`` and
    ``ext://``.

    Raises:
        UserError: naming key and value.
    """
    check_targets(node, plugins, "hydra", HYDRAS)
    for section in ("job_logging", "hydra_logging"):
        for place, value in _leaves(node.get(section) or {}, f"hydra.{section}"):
            name = place.rpartition(".")[2]
            called = name in ("()", "class") and not lies_under(str(value), ("logging", "colorlog"))
            foreign = str(value).startswith("ext://") and value not in ("ext://sys.stdout", "ext://sys.stderr")
            if called or foreign:
                raise UserError(f"{place}={value}: only Python's own logging may be named here; leave it out")


def _leaves(node: Any, key: str) -> Iterator[tuple[str, Any]]:
    children: Iterable[tuple[Any, Any]] = ()
    if isinstance(node, Mapping):
        children = ((f"{key}.{name}", value) for name, value in node.items())
    elif isinstance(node, list | tuple):
        children = ((f"{key}[{number}]", value) for number, value in enumerate(node))
    else:
        yield key, node
    for place, value in children:
        yield from _leaves(value, place)


def _is_path(text: Any) -> bool:
    """Whether it is a dotted path of names, none of them Python's own (``__globals__``)."""
    return isinstance(text, str) and all(part.isidentifier() and not part.startswith("__") for part in text.split("."))


def _module_of(target: str, allowed: Sequence[str]) -> tuple[str, list[str]]:
    """The longest module on the path of `target`, and what is to be looked up in it."""
    parts = target.split(".")
    module = parts[0]
    import_module(module)
    for end in range(2, len(parts) + 1):
        name = ".".join(parts[:end])
        # A parent of an allowed module, or below one: nothing else is imported.
        if not (lies_under(name, allowed) or any(lies_under(prefix, (name,)) for prefix in allowed)):
            break
        try:
            there = find_spec(name)
        except ModuleNotFoundError:  # its parent is no package
            there = None
        if there is None:
            break
        import_module(name)
        module = name
    return module, target.removeprefix(module).split(".")[1:]


def _refusal(place: str, target: str, home: str | None) -> UserError:
    if home is None:
        return UserError(f"{place}={target}: is no class or function of an allowed package; name one that is")
    package = home.rpartition(".")[0] if home.startswith(("src.", "lightning.")) else home.partition(".")[0]
    where = "" if home == target else f" (it is {home}'s)"
    return UserError(
        f"{place}={target}: not allowed to be called{where}; a config may name parts from {', '.join(PARTS)}."
        f" If you trust that code, add plugins=[{package or home}]"
    )
