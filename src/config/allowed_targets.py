"""Checks of what a config would have called, and the calls: only a slot's own factories (`src.config.factories`).

A config may come from somebody else, within a run folder for example, and what ``_target_`` names is called. Its
text is checked before anything is imported, and what a plugin's name leads to before it is called. A factory is called
with plain Python data: nothing below it is built, except where its slot says so.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from src.config.errors import UserError
from src.config.factories import SLOTS, current, fits

TARGET = "_target_"
# What Hydra's `instantiate` would take as instructions; here only the first means anything.
RESERVED = (TARGET, "_args_", "_partial_", "_recursive_", "_convert_")
# Packages of this project, which are no plugins.
OURS = ("src", "kernels")
# Python's own handlers and formatters, which a sweep's ``hydra.job_logging`` may name.
LOGGING = (
    "logging.FileHandler",
    "logging.Formatter",
    "logging.NullHandler",
    "logging.StreamHandler",
    "logging.handlers.RotatingFileHandler",
    "colorlog.ColoredFormatter",
    "colorlog.StreamHandler",
)
STREAMS = ("ext://sys.stdout", "ext://sys.stderr")
# An interpolation that is neither a reference to another key nor one of three resolvers. Others (`oc.create`) make a
# node out of a text, which could hold a `_target_` that no check has seen.
_MAKES_NODES = re.compile(r"\$\{(?!\s*(?:[\w.\[\]]+\s*\}|(?:now|hydra|oc\.env):))")

Path = tuple[str | int, ...]


def lies_under(path: str, prefixes: Iterable[str]) -> bool:
    """Whether a dotted path is one of `prefixes` or lies below one, by whole components."""
    return any(path == prefix or path.startswith(f"{prefix}.") for prefix in prefixes)


def check_plugins(plugins: Sequence[str]) -> None:
    """Raise UserError unless each is the dotted path of a package or module that may hold a plugin."""
    for prefix in plugins:
        if not _is_path(prefix):
            raise UserError(f"plugins={list(plugins)}: expected names of packages, as in plugins=[my_rewards]")
        top = prefix.partition(".")[0]
        if top in OURS:
            raise UserError(f"plugins=[{prefix}]: belongs to this project; what a config may call of it is listed")
        if top in sys.stdlib_module_names:
            raise UserError(f"plugins=[{prefix}]: belongs to Python itself and holds no part of a run; leave it out")


def check_config(config: Mapping[str, Any], plugins: Sequence[str] = ()) -> None:
    """Check every part of a whole config in plain data, and that nothing else in it has a ``_target_``.

    Nothing is imported.

    Raises:
        UserError: naming key, value and what may stand there.
    """
    check_plugins(plugins)
    parts = dict(_parts_of(config))
    for path, (node, slot) in parts.items():
        check_part(node, slot, plugins, _dotted(path))
    _refuse_reserved(config, (), parts)


def check_part(node: Any, slot: str, plugins: Sequence[str], key: str) -> None:
    """Check the plain config of one part at `key`, which `slot` builds. Nothing is imported.

    Raises:
        UserError: naming key, value and what may stand there.
    """
    check_plugins(plugins)
    if not isinstance(node, Mapping):
        raise UserError(f"{key}={node}: expected a {SLOTS[slot].what} with {_choices(slot)} as its {TARGET}")
    place = f"{key}.{TARGET}"
    target = current(node.get(TARGET))
    if not isinstance(target, str) or not target:
        raise UserError(f"{place}={target!r}: expected the dotted path of a {SLOTS[slot].what}: {_choices(slot)}")
    if target not in SLOTS[slot].factories and not _may_be_of_plugin(target, plugins):
        raise _refusal(place, target, slot)
    _refuse_reserved({**_settings(node), **_nested(node, slot, key)}, (key,))


def factory(node: Any, slot: str, plugins: Sequence[str], key: str) -> tuple[Callable[..., Any], dict[str, Any]]:
    """What the plain config of a part names, imported, and the settings it is to be called with.

    Raises:
        UserError: for a part that may not be built here, or that does not exist.
    """
    check_part(node, slot, plugins, key)
    settings = _settings(node)
    for name, values in _nested(node, slot, key).items():
        settings[name] = _named(SLOTS[slot].nested[name], f"{key}.{name}.{TARGET}")(**values)
    target, place = current(node[TARGET]), f"{key}.{TARGET}"
    found = _named(target, place)
    if target not in SLOTS[slot].factories:
        _check_plugins_own(found, target, slot, plugins, place)
    return found, settings


def check_hydra(node: Mapping[str, Any], plugins: Sequence[str]) -> None:
    """Refuse what a sweep's ``hydra`` section would call besides the launchers and sweepers of `src.config.factories`.

    node: not resolved. Python's logging, which ``hydra.job_logging`` configures, imports what stands behind ``()``,
    ``class`` and ``ext://``.

    Raises:
        UserError: naming key and value.
    """
    parts: dict[Path, tuple[Any, str]] = {
        ("hydra", name): (node[name], name) for name in ("launcher", "sweeper") if node.get(name) is not None
    }
    callbacks = node.get("callbacks") or {}
    if not isinstance(callbacks, Mapping):
        raise UserError(f"hydra.callbacks={callbacks}: expected callbacks by name; leave it out")
    parts |= {("hydra", "callbacks", name): (callback, "callback") for name, callback in callbacks.items()}
    for path, (part, slot) in parts.items():
        _check_hydras_part(part, slot, plugins, _dotted(path))
    _refuse_reserved(node, ("hydra",), parts)
    for section in ("job_logging", "hydra_logging"):
        for path, value in _leaves(node.get(section) or {}, ("hydra", section)):
            _check_log_setting(path, value)


def _parts_of(config: Mapping[str, Any]) -> Iterator[tuple[Path, tuple[Any, str]]]:
    """(path, (node, slot)) of everything in a whole config that is built."""
    for name in ("model", "data", "logger"):
        node = config.get(name)
        # Without a target, as in `logger=csv`, there is no logger besides metrics.csv.
        if isinstance(node, Mapping) and (name != "logger" or node.get(TARGET) is not None):
            yield (name,), (node, name)
    rewards = config.get("rewards")
    experts = rewards.get("experts") if isinstance(rewards, Mapping) else None
    for name, node in experts.items() if isinstance(experts, Mapping) else ():
        yield ("rewards", "experts", name), (node, "expert")


def _settings(node: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in node.items() if name != TARGET}


def _nested(node: Mapping[str, Any], slot: str, key: str) -> dict[str, dict[str, Any]]:
    """The settings of a part that are parts themselves, by name, each as its own settings.

    Raises:
        UserError: for one that has another target than its slot allows.
    """
    nested = {}
    for name, only in SLOTS[slot].nested.items():
        inner = node.get(name)
        if not isinstance(inner, Mapping) or inner.get(TARGET) is None:
            continue
        if current(inner[TARGET]) != only:
            raise UserError(f"{key}.{name}.{TARGET}={inner[TARGET]}: cannot be called here; only {only} can")
        nested[name] = _settings(inner)
    return nested


def _refuse_reserved(node: Any, path: Path, checked: Collection[Path] = ()) -> None:
    """Raise UserError for a reserved key anywhere in plain data; what stands at `checked` is left alone."""
    inner: Iterable[tuple[Any, Any]] = ()
    if path in checked:
        return
    if isinstance(node, Mapping):
        inner = node.items()
        for name in RESERVED:
            if name in node and (name != TARGET or node[name] is not None):
                raise UserError(
                    f"{_dotted((*path, name))}={node[name]}: cannot stand here, leave it out; a part is built from its"
                    f" {TARGET} and its plain settings, and nothing inside of them is built"
                )
    elif isinstance(node, list | tuple):
        inner = enumerate(node)
    for name, value in inner:
        _refuse_reserved(value, (*path, name), checked)


def _may_be_of_plugin(target: str, plugins: Sequence[str]) -> bool:
    """Whether a target is a public name of a module of one of `plugins`, as far as its text tells."""
    return _is_path(target) and lies_under(target.rpartition(".")[0], plugins)


def _is_path(text: Any) -> bool:
    """Whether it is a dotted path of public names."""
    return isinstance(text, str) and all(part.isidentifier() and not part.startswith("_") for part in text.split("."))


def _named(target: str, place: str) -> Any:
    """What has the name that `target` ends in, in the module before it: nothing inside of a class is reached."""
    module, _, name = target.rpartition(".")
    try:
        home = import_module(module)
    except ImportError as error:
        raise UserError(f"{place}={target}: {module} cannot be imported ({error})") from error
    try:
        return getattr(home, name)
    except AttributeError:
        raise UserError(f"{place}={target}: {module} has no {name}") from None


def _check_plugins_own(found: Any, target: str, slot: str, plugins: Sequence[str], place: str) -> None:
    """Raise UserError unless a plugin's object is defined in a plugin itself and is a factory of `slot`."""
    home = getattr(found, "__module__", None)
    is_factory = inspect.isclass(found) or inspect.isfunction(found)
    if not is_factory or not isinstance(home, str) or not lies_under(home, plugins):
        whose = f"it is defined in {home}" if is_factory else f"it is a {type(found).__name__}"
        raise UserError(f"{place}={target}: expected a class or function that {', '.join(plugins)} defines; {whose}")
    if not fits(found, slot):
        rule = SLOTS[slot]
        having = "" if rule.methods_of is None else f" that has the methods of {rule.methods_of}"
        raise UserError(
            f"{place}={target}: not a {rule.what}; expected a class that derives from {rule.base}{having}, or a"
            f' class or function marked with @makes("{slot}") of src.config.factories'
        )


def _check_hydras_part(node: Any, slot: str, plugins: Sequence[str], key: str) -> None:
    for path, value in _leaves(node, (key,)):
        if isinstance(value, str) and _MAKES_NODES.search(value):
            raise UserError(f"{_dotted(path)}={value}: only other keys, now:, hydra: and oc.env: can be used here")
    check_part(node, slot, plugins, key)
    if node[TARGET] not in SLOTS[slot].factories:
        factory(node, slot, plugins, key)  # Hydra will call it: what a plugin's name leads to is looked at here


def _check_log_setting(path: Path, value: Any) -> None:
    """Raise UserError for a setting of Python's logging that would import or call something, or hide that it does."""
    name, text = path[-1], str(value)
    called = name in ("()", "class") and value not in LOGGING
    foreign = text.startswith("ext://") and value not in STREAMS
    hidden = "${" in text and name != "filename"
    if called or foreign or hidden:
        raise UserError(f"{_dotted(path)}={value}: only Python's own logging may be named here; leave it out")


def _leaves(node: Any, path: Path) -> Iterator[tuple[Path, Any]]:
    children: Iterable[tuple[Any, Any]] = ()
    if isinstance(node, Mapping):
        children = node.items()
    elif isinstance(node, list | tuple):
        children = enumerate(node)
    else:
        yield path, node
    for name, value in children:
        yield from _leaves(value, (*path, name))


def _dotted(path: Path) -> str:
    """``("a", 1, "b")`` as ``a[1].b``."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
    return text.removeprefix(".")


def _choices(slot: str) -> str:
    return ", ".join(SLOTS[slot].factories) or "none of this project's"


def _refusal(place: str, target: str, slot: str) -> UserError:
    """What may stand there instead; ``plugins=`` is only offered for a package that could be the user's own."""
    top, advice = target.partition(".")[0], ""
    if top not in (*OURS, *sys.stdlib_module_names):
        advice = "; a class of a package of your own needs plugins=[...] (docs/EXTENDING.md)"
        if _is_path(target) and "." in target and _lies_outside_of_site_packages(top):
            advice = f"; if you wrote {top}, or trust it as you trust your own code, add plugins=[{top}]"
    return UserError(
        f"{place}={target}: cannot be called here; expected a {SLOTS[slot].what}: {_choices(slot)}{advice}"
    )


def _lies_outside_of_site_packages(package: str) -> bool:
    """Whether there is a package of this name that nobody installed: in the current folder, or on PYTHONPATH."""
    try:
        spec = find_spec(package)  # of a name without dots: nothing is imported
    except (ImportError, ValueError):
        return False
    if spec is None:
        return False
    places = [spec.origin, *(spec.submodule_search_locations or ())]
    return not any(part in str(place) for place in places for part in ("site-packages", "dist-packages"))
