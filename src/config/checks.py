"""The checks of a composed config that types cannot make: unknown keys, choices, and the ranges of its numbers.

A number's range stands with its field in the schema (`src.config.setting.number_field`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import fields
from typing import Any

from omegaconf import ListConfig, OmegaConf

from src.config.allowed_targets import TARGET, check_config, lies_under
from src.config.commands import ROOT_SCHEMAS, settings_of
from src.config.errors import UserError
from src.config.factories import current
from src.config.masking import learn
from src.config.schema import GROUP_SCHEMAS
from src.config.setting import Setting, nested

MOST_DEVICES = 1024  # of one machine: Lightning makes a list of as many
Check = tuple[Callable[[Any], bool], str]  # does the value hold, and what was expected


def _one_of(*choices: str) -> Check:
    return lambda value: value in choices, "one of " + ", ".join(choices)


def _is_file_name(text: str) -> bool:
    return text not in ("", ".", "..") and not set(text) & set("/\\\0") and len(text.encode(errors="replace")) <= 200


_DEVICES = f"auto, how many (1 to {MOST_DEVICES}, -1 for all), or a list of their numbers"


def _are_devices(value: Any) -> bool:
    if isinstance(value, list | tuple | ListConfig):
        return len(value) > 0 and all(_is_whole(item) and 0 <= item < MOST_DEVICES for item in value)
    if isinstance(value, str):
        numbers = value.removesuffix(",").split(",")
        return value in ("auto", "-1") or all(part.isdecimal() and len(part) <= 4 for part in numbers)
    return _is_whole(value) and (value == -1 or 1 <= value <= MOST_DEVICES)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


CHECKS: dict[str, Check] = {
    "run.name": (_is_file_name, "the name of a folder: no slash, at most 200 bytes (run.dir takes a path)"),
    "rollout.graph": (lambda v: v == "auto" or isinstance(v, bool), "one of auto, true, false"),
    "algorithm.kl": _one_of("k1", "k2", "k3", "exact"),
    "algorithm.kl_in": _one_of("loss", "reward"),
    "algorithm.logp": _one_of("guided", "conditional"),
    "algorithm.penalties_on": _one_of("both", "plan"),
    "optim.schedule": _one_of("constant", "linear", "cosine"),
    "optim.activation_checkpointing": (
        lambda v: isinstance(v, bool) or v == "auto",
        "auto, true or false",
    ),
    "optim.betas": (lambda v: len(v) == 2, "two numbers in [0, 1)"),
    "trainer.devices": (_are_devices, _DEVICES),
    "trainer.precision": _one_of("auto", "32-true", "bf16-mixed"),
    "model.dtype": _one_of("auto", "float32", "bfloat16"),
    "model.lora.targets": (lambda v: len(v) > 0, "at least one projection"),
    "data.on_error": _one_of("raise", "skip"),
    "rewards.combine": _one_of("sum", "mean", "min", "product"),
    "rewards.on_error": _one_of("raise", "drop"),
    "kernels": _one_of("auto", "triton", "torch"),
    # evaluate
    "kinds": (lambda v: len(v) > 0, "at least one kind of prompt, or null for all"),
    # compare
    "mode": _one_of("max", "min"),
    # benchmark; score_geneval has a folder under the first name
    "images": (lambda v: len(v) > 0, "at least one integer >= 1"),
    "scaling": (lambda v: len(v) > 0, "at least one integer >= 1"),
    # export, generate, evaluate, benchmark_images
    "dtype": _one_of("auto", "float32", "bfloat16"),
    "layout": _one_of("transformers", "original"),
    # serve_rewards
    "host": _one_of("127.0.0.1", "0.0.0.0", "::"),  # noqa: S104 (checked, not bound)
    "devices": (_are_devices, _DEVICES),
    "accelerator": _one_of("auto", "cpu", "cuda", "mps"),
    "log_level": _one_of("critical", "error", "warning", "info", "debug"),
}


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
    """Check that the root config `root` has no key but its schema's, every target, every choice and every number.

    Raises:
        UserError: naming key, value and what is expected, for the first value out of range; for a ``_target_`` that
            may not be called (`src.config.allowed_targets`).
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
    check_numbers(plain, (known[key] for key in known if not key.startswith(tuple(foreign))))
    for key, (holds, expected) in CHECKS.items():
        value = OmegaConf.select(config, key, default=None)
        # Another root may have something else under the name.
        if value is None or (key in known and known[key].typed is not None):
            continue
        if not holds(value):
            raise UserError(f"{key}={value}: expected {expected}")


def check_numbers(config: Any, of: Iterable[Setting], prefix: str = "") -> None:
    """Check the numbers of plain config data against the ranges that the settings `of` declare; null is not checked.

    prefix: of the keys, for messages.

    Raises:
        UserError: naming key, value and range, for the first number outside of its range.
    """
    for setting in of:
        value = _selected(config, setting.key)
        if setting.parts and isinstance(value, Mapping):
            for name, part in value.items():
                # A part of somebody else's may mean another thing by the name.
                if isinstance(part, Mapping) and lies_under(str(part.get(TARGET)), ("src",)):
                    check_numbers(part, setting.parts.values(), f"{prefix}{setting.key}.{name}.")
        if setting.range is None or value is None:
            continue
        for key, number in _numbers(prefix + setting.key, value):
            if not _is_number(number, setting.number) or not setting.range.holds(number):
                shown = value if isinstance(value, list) else number
                raise UserError(f"{key}={shown}: expected {setting.told(isinstance(value, list))}")


def _is_number(value: Any, kind: type | None) -> bool:
    return _is_whole(value) or (kind is float and isinstance(value, float))


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
