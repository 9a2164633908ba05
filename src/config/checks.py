"""The checks of a composed config that types cannot make: unknown keys, targets, and what each setting may be.

Ranges, choices and other rules stand with their fields in the schema (`src.config.setting`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields
from typing import Any

from omegaconf import DictConfig, OmegaConf

from src.config.allowed_targets import TARGET, check_config, lies_under
from src.config.commands import ROOT_SCHEMAS, settings_of
from src.config.errors import UserError
from src.config.factories import current
from src.config.masking import learn
from src.config.schema import GROUP_SCHEMAS
from src.config.setting import Setting, is_whole, nested


def _refuse_unknown(node: Any, schema: type, prefix: str) -> None:
    """Raise UserError for keys outside of the schema, which Hydra's ``+key=value`` adds past every type, and for those
    that ``~key`` took out.
    """
    known = {item.name: item for item in fields(schema)}
    if missing := [name for name in known if name not in node.keys()]:  # noqa: SIM118 (`in` passes over null)
        raise UserError(f"{prefix}{missing[0]}: was taken out; set it to another value, ~ is for what a dict holds")
    for key in node:
        if key == "hydra" and not prefix:
            continue
        if key not in known:
            raise UserError(f"{prefix}{key}: no such key; there are {', '.join(known)}")
        if (inner := nested(known[key])) is not None and OmegaConf.is_config(node[key]):
            _refuse_unknown(node[key], inner, f"{prefix}{key}.")


def validate(config: Any, root: str = "config") -> None:
    """Check that the root config `root` has no key but its schema's, every target, every value, and every section's
    settings together.

    Raises:
        UserError: naming key, value and what is expected, for the first value that does not fit; for settings that
            contradict each other; for a ``_target_`` that may not be called (`src.config.allowed_targets`).
    """
    _refuse_unknown(config, ROOT_SCHEMAS[root], "")
    foreign = []
    for group, schema in GROUP_SCHEMAS.items():
        node = config.get(group) if group in config else None
        if node is None or not OmegaConf.is_config(node):
            continue
        # A part behind a target of its own brings its own keys.
        if current(node.get("_target_")) == getattr(schema, "_target_", None):
            _refuse_unknown(node, schema, f"{group}.")
        else:
            foreign.append(f"{group}.")
    plain: Any = OmegaConf.to_container(config, resolve=True)
    learn(plain)
    check_config(plain, list(config.get("plugins") or ()))
    known = settings_of(root)
    check_values(plain, (known[key] for key in known if not key.startswith(tuple(foreign))))
    _check_sections(config)


def _check_sections(config: Any) -> None:
    """Let each section of the config, as the schema's object, check what its settings say together."""
    for section in config:
        node = config._get_node(section)
        schema = OmegaConf.get_type(node) if isinstance(node, DictConfig) else None
        if hasattr(schema, "check"):
            checked: Any = OmegaConf.to_object(node)
            try:
                checked.check()
            except ValueError as error:
                raise UserError(str(error)) from error


def check_values(config: Any, of: Iterable[Setting], prefix: str = "") -> None:
    """Check plain config data against the ranges and rules that the settings `of` declare; null is not checked.

    prefix: of the keys, for messages.

    Raises:
        UserError: naming key, value and what is expected, for the first value that does not fit.
    """
    for setting in of:
        value = _selected(config, setting.key)
        if setting.parts and isinstance(value, Mapping):
            for name, part in value.items():
                # A part of somebody else's may mean another thing by the name.
                if isinstance(part, Mapping) and lies_under(str(part.get(TARGET)), ("src",)):
                    check_values(part, setting.parts.values(), f"{prefix}{setting.key}.{name}.")
        if value is None:
            continue
        for key, number in _numbers(prefix + setting.key, value) if setting.range is not None else ():
            if not _is_number(number, setting.number) or not setting.holds(number):
                shown = value if isinstance(value, list) else number
                raise UserError(f"{key}={shown}: expected {setting.told(isinstance(value, list))}")
        if setting.rule is not None and not setting.rule.holds(value):
            raise UserError(f"{prefix}{setting.key}={value}: expected {setting.rule.expected}")


def _is_number(value: Any, kind: type | None) -> bool:
    return is_whole(value) or (kind is float and isinstance(value, float))


def _numbers(key: str, value: Any) -> Iterator[tuple[str, Any]]:
    """(key, number) of a number, of a list's or of a mapping's."""
    if isinstance(value, Mapping):
        yield from ((f"{key}.{name}", number) for name, number in value.items())
    elif isinstance(value, list):
        yield from ((key, number) for number in value)
    else:
        yield key, value


def _selected(node: Any, key: str) -> Any:
    for name in key.split("."):
        if not isinstance(node, Mapping):
            return None
        node = node.get(name)
    return node
