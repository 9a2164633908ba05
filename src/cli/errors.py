"""Hydra's and OmegaConf's complaints as one message that names file or key, value and fix."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from src.config.schema import CONFIGS
from src.config.yaml_bounds import short_path

if TYPE_CHECKING:
    from omegaconf.errors import OmegaConfBaseException

LONGEST = 1000  # characters of somebody else's message


def nearest(word: str, known: Iterable[str]) -> str:
    """`` Did you mean x?``, or nothing where no known word is close."""
    close = get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f" Did you mean {close[0]}?" if close else ""


def group_options(group: str) -> list[str]:
    """The options of a config group, by file name, sorted."""
    return sorted(path.stem for path in (CONFIGS / group).glob("*.yaml"))


def config_keys(root: str = "config") -> list[str]:
    """All dotted keys of a root config's schema and of the schemas of its groups."""
    from src.config.commands import settings_of

    return list(settings_of(root))


def explain(error: BaseException, overrides: Sequence[str], root: str = "config") -> str:
    """One line for what Hydra or OmegaConf raised while composing `overrides` onto the config `root`."""
    text = _chain(error)

    def unknown_key(key: str, file: str = "") -> str:
        known = nearest(key, config_keys(root)) or " `--cfg job` shows all keys."
        return f"{file + ': ' if file else ''}{key}: no such key.{known}"

    for pattern, tell in (
        (r"Could not find '([\w-]+)/([^']+)'", _unknown_option),
        (r"Could not override '([^']+)'", lambda m, _: unknown_key(m[1])),
        (r"Key '([^']+)' (?:is )?not in", lambda m, t: unknown_key(_full_key(t) or m[1], _file(t))),
        (
            r"Value '(.*?)'(?: of type '\w+')? (?:could not be converted to|is not a valid) (\w+)",
            lambda m, t: _wrong_type(m, t, root),
        ),
        (r"Value '(.*?)' \((\w+)\) is not supported|Cannot (?:assign|merge|convert)", _wrong_value),
        (r"Ambiguous value for argument '([^']+)'", _ambiguous),
        (r"missing EQUAL at|mismatched input|no viable alternative|token recognition error|extraneous input", _grammar),
        (r"Unsupported interpolation type|Interpolation (?:key|to) .* not found", lambda m, t: _first_lines(t)),
    ):
        if found := re.search(pattern, text, re.DOTALL):
            told = tell(found, text)
            if told:
                return told if any(char in told for char in "=:") else f"{told} (in: {' '.join(overrides)})"
    return _first_lines(text) or f"{type(error).__name__} (in: {' '.join(overrides)})"


def explain_interpolation(error: OmegaConfBaseException, config: Any) -> str:
    """What keeps a composed config from being resolved: file and key as far as known, the text and the fix."""
    from omegaconf import OmegaConf

    from src.config.sources import file_with

    key = str(error.full_key or "")
    text = _value_at(OmegaConf.to_container(config, resolve=False), key)
    file = file_with(text) if text is not None else None
    problem = _first_lines(str(error)).partition(" full_key:")[0]
    where = [short_path(file)] if file else []
    where += [key if text is None else f"{key}={text}"] if key else []
    variable = re.search(r"Environment variable '([^']+)' not found", problem)
    fix = f"set {variable[1]} in the environment" if variable else "correct it"
    return ": ".join([*where, problem]) + f"; {fix}, or give {key or 'the key'} a value of its own"


def _value_at(config: Any, key: str) -> str | None:
    """The text at a dotted key of plain data; None where there is none."""
    for part in re.findall(r"[^.\[\]]+", key):
        if isinstance(config, dict):
            config = config.get(part)
        elif isinstance(config, list) and part.isdigit() and int(part) < len(config):
            config = config[int(part)]
        else:
            return None
    return config if key and isinstance(config, str) else None


def _chain(error: BaseException | None) -> str:
    parts = []
    while error is not None:
        parts.append(str(error))
        error = error.__cause__ or error.__context__
    return "\n".join(parts)


def _unknown_option(match: re.Match[str], text: str) -> str:
    group, option = match[1], match[2]
    options = group_options(group)
    if not options:
        return f"{group}={option}: there is no config group {group!r} in {short_path(CONFIGS)}"
    return f"{group}={option}: no such option.{nearest(option, options)} There are: {', '.join(options)}"


def _wrong_type(match: re.Match[str], text: str, root: str) -> str:
    from src.config.commands import settings_of

    file, setting = _file(text), settings_of(root).get(_full_key(text) or "")
    wanted = {"Integer": "an integer", "Float": "a number", "Boolean": "true or false", "bool": "true or false"}.get(
        match[2], match[2]
    )
    if setting is not None and setting.range is not None and match[2] in ("Integer", "Float"):
        wanted = setting.told()
    return f"{file + ': ' if file else ''}{_full_key(text) or 'a key'}={match[1]}: expected {wanted}"


def _wrong_value(match: re.Match[str], text: str) -> str:
    file, key = _file(text), _full_key(text)
    line = next((line for line in text.splitlines() if match[0][:20] in line), match[0])
    return f"{file + ': ' if file else ''}{key + ': ' if key else ''}{line.strip()}"


def _ambiguous(match: re.Match[str], text: str) -> str:
    key, _, value = match[1].partition("=")
    return (
        f"{key}={value}: a comma separates the values of a sweep; add -m to sweep,"
        f" or quote the value: {key}='\"{value}\"'"
    )


def _grammar(match: re.Match[str], text: str) -> str:
    found = re.search(r"Error parsing override '([^']+)'", text)
    if found is None and (full_key := _full_key(text)):  # in a value of a config file
        what = next(line.strip() for line in text.splitlines() if match[0][:20] in line)
        return f"{full_key}: not a valid ${{...}}: {what}; \\${{ stands for these very characters"
    what = found[1] if found else "an argument"
    return f"{what}: not of the form key=value; values with special characters need quotes inside quotes: key='\"...\"'"


def _full_key(text: str) -> str | None:
    found = re.search(r"full_key: (\S+)", text)
    return found[1] if found else None


def _file(text: str) -> str:
    from src.config.sources import file_named

    found = re.search(r"In '([^']+)'", text)
    return "" if found is None else short_path(file_named(f"{found[1]}.yaml") or f"configs/{found[1]}.yaml")


def _first_lines(text: str) -> str:
    told = " ".join(line.strip() for line in text.splitlines()[:2] if line.strip())
    return told if len(told) <= LONGEST else f"{told[:LONGEST]}..."
