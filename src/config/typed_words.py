r"""Paths and words on the command line: what follows the first ``=`` is taken as typed, by what the schema declares.

In Hydra's grammar commas, colons, brackets, quotes and ``=`` mean something; in a path or a prompt they are letters.
Three things keep a meaning there, as everywhere in a config: ``null``, a value that stands in quotes as a whole (it is
what the quotes hold), and a reference to a setting of this command or to a resolver, as ``${run.name}`` and
``${oc.env:HOME}``. Any other ``${`` is letters, and ``\${run.name}`` are these very letters. A setting that takes
several paths also takes ``[a, b]`` and ``{name: a}``, and in a sweep a comma separates values.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from src.config.commands import settings_of
from src.config.errors import UserError
from src.config.setting import PATH, PATHS, Setting

# What might refer to something: a resolver by its name and a colon, a setting by its first name.
_REFERENCE = re.compile(r"(?P<slashes>\\*)\$\{(?:\s*(?:(?P<resolver>[\w.]+)\s*:|(?P<section>\w+)\s*(?:[.}\[]|$)))?")


def as_typed(overrides: Sequence[str], root: str, sweep: bool = False) -> list[str]:
    """The overrides in Hydra's grammar, those of paths and words quoted so that they are read as they were typed.

    root: the root config, whose schema says which these are. sweep: a comma separates the values of a sweep.
    """
    known = settings_of(root)
    return [_quoted(word, known, sweep) for word in overrides]


def kind_of(key: str, known: Mapping[str, Setting]) -> str | None:
    """How the text of a dotted key is taken: PATH, PATHS or TEXT as it is, None by Hydra's grammar."""
    if key in known:
        return known[key].typed
    above, _, name = key.rpartition(".")
    holder = known.get(above.rpartition(".")[0])  # rewards.experts of rewards.experts.hps.path
    part = None if holder is None else holder.parts.get(name)
    return None if part is None else part.typed


def expand_paths(config: Any, root: str) -> None:
    """Replace ``~`` in the path settings of a composed config, in place: of the command line and of config files.

    Raises:
        UserError: naming the key, for ``~name`` of a user who does not exist, for a path that is empty, and for one
            that refers to a setting which is not there.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    from src.config.interpolation_bounds import escaped

    known = settings_of(root)
    for key in [*(key for key in known if known[key].typed in (PATH, PATHS)), *_of_parts(config, known)]:
        try:
            value = OmegaConf.select(config, key)
        except OmegaConfBaseException as error:
            told = str(error).partition("\n")[0]
            raise UserError(
                f"{key}: in a path, ${{...}} stands for another setting, and this one does not ({told})"
            ) from error
        found = _expanded(key, OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value)
        if found is not None:
            # Resolved above: what an interpolation gave may itself look like one.
            OmegaConf.update(config, key, escaped(found), merge=False)


def _of_parts(config: Any, known: Mapping[str, Setting]) -> list[str]:
    """The keys of paths in parts that have no schema, such as experts."""
    from omegaconf import DictConfig, OmegaConf

    keys = []
    for setting in known.values():
        held = OmegaConf.select(config, setting.key) if setting.parts else None
        if not isinstance(held, DictConfig):
            continue
        paths = [name for name, part in setting.parts.items() if part.typed == PATH]
        for name, part in held.items():
            keys += [
                f"{setting.key}.{name!s}.{path}" for path in paths if isinstance(part, DictConfig) and path in part
            ]
    return keys


def _expanded(key: str, value: Any) -> Any:
    """The value with ``~`` expanded in each path of it; None where nothing changes."""
    if isinstance(value, Mapping):
        value = {name: _expanded(key, item) or item for name, item in value.items()}
        return value
    if isinstance(value, list):
        return [_expanded(key, item) or item for item in value]
    if not isinstance(value, str) or value == "???":
        return None
    if not value:
        raise UserError(f"{key}=: expected a path, or null")
    return expanded(key, value)


def expanded(key: str, text: str) -> str:
    """A path with ``~`` or ``~name`` at its beginning replaced by the home folder.

    Raises:
        UserError: naming `key`, for a user who does not exist.
    """
    found = os.path.expanduser(text)
    if found.startswith("~"):
        raise UserError(f"{key}={text}: there is no user {text[1:].partition('/')[0]!r}; ./{text} is a folder here")
    # pathlib drops the dot of "./~x", and what reads the path later would expand it.
    return os.path.abspath(found) if Path(found).parts[:1] and Path(found).parts[0].startswith("~") else found


def _quoted(word: str, known: Mapping[str, Setting], sweep: bool) -> str:
    key, sign, value = word.partition("=")
    kind = kind_of(key.lstrip("+"), known)
    if not sign or kind is None or value.lower() == "null":
        return word
    value = _REFERENCE.sub(lambda found: _kept_or_letters(found, known), value)
    if _means_something(f"{key}={value}", kind, sweep):
        return f"{key}={value}"
    _check_references(key, value)
    if kind == PATHS and len(value) > 1 and value[0] + value[-1] in ("[]", "{}"):
        return f"{key}={value[0]}{','.join(_item(part, value[0] == '{') for part in value[1:-1].split(','))}{value[-1]}"
    values = value.split(",") if sweep else [value]
    return f"{key}={','.join(_in_quotes(part) for part in values)}"


def _kept_or_letters(found: re.Match[str], known: Mapping[str, Setting]) -> str:
    """A ``${`` as it is where it names something of this config, else escaped: OmegaConf gives these letters back."""
    from omegaconf import OmegaConf

    slashes, resolver, section = found["slashes"], found["resolver"], found["section"]
    escaped = len(slashes) % 2 == 1
    if escaped or (resolver and OmegaConf.has_resolver(resolver)) or any(section == k.partition(".")[0] for k in known):
        return found[0]
    return f"{slashes}\\{found[0]}"  # twice as many and one, of which half are letters


def _item(text: str, named: bool) -> str:
    """One of several paths in Hydra's grammar, with its name in front where it has one."""
    name, sign, path = text.partition(":") if named else ("", "", text)
    return f"{name}{sign}{_in_quotes(path.strip())}" if sign or not named else text


def _means_something(word: str, kind: str, sweep: bool) -> bool:
    """Whether a value is meant for Hydra: quoted as a whole, several paths, or a sweep."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.core.override_parser.types import QuotedString
    from hydra.errors import HydraException

    value = word.partition("=")[2]
    quoted = len(value) > 1 and value[0] == value[-1] and value[0] in "'\""
    if not (quoted or sweep or (kind == PATHS and value[:1] in ("[", "{"))):
        return False
    try:
        read = OverridesParser.create().parse_override(word)
        if read.is_sweep_override():
            return sweep
        return isinstance(read.value(), list | dict) if not quoted else isinstance(read._value, QuotedString)
    except (HydraException, ValueError):
        return False


def _check_references(key: str, value: str) -> None:
    """Raise UserError for a reference to another setting that is cut short or out of form."""
    from omegaconf.errors import GrammarParseError
    from omegaconf.grammar_parser import parse

    if "${" not in value:
        return
    try:
        parse(value)
    except GrammarParseError as error:
        raise UserError(
            f"{key}={value}: ${{key}} stands for another setting, and this is not the form; \\${{ are these letters"
        ) from error


def _in_quotes(text: str) -> str:
    from hydra.core.override_parser.types import Quote, QuotedString

    return str(QuotedString(text=text, quote=Quote.single).with_quotes())
