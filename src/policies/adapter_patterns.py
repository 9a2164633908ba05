"""Tries the patterns in an adapter's config within limits, before PEFT runs them without limits.

``target_modules`` and others may be regular expressions, which PEFT matches with every module's name. One of ten
letters can take forever to fail (``(a+)+$``). The text of a pattern does not show this, so they are tried.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from src.text.bounded_work import Stopped, answered

_CONFIG = "adapter_config.json"
# Without a choice or a repetition a pattern cannot be slow.
_PLAIN = re.compile(r"[\w.]*")


def check_patterns(adapter: Path, names: Iterable[str]) -> None:
    """Raise ValueError, naming file, key and pattern, for one that takes too long on a model's modules, or is invalid.

    names: of all modules of the model, as PEFT sees them.
    """
    file = adapter / _CONFIG
    modules = sorted({name.removeprefix("base_model.model.") for name in names})
    for key, patterns in _patterns(json.loads(file.read_text(encoding="utf-8"))):
        tried = [(how, form, text) for how, form, text in patterns if not _PLAIN.fullmatch(text)]
        if not tried:
            continue
        asked = [[how, form.replace("PATTERN", text)] for how, form, text in tried]
        try:
            answered("match", patterns=asked, names=modules)
        except Stopped as error:
            shown = tried[0][2] if len(tried[0][2]) <= 80 else f"{tried[0][2][:80]}..."
            more = f" and {len(tried) - 1} more" if len(tried) > 1 else ""
            raise ValueError(
                f"{file}: {key}={shown}{more}: as a pattern of modules' names it {error}; write the modules' names"
                " out as a list"
            ) from error


def _patterns(config: Mapping[str, Any]) -> Iterator[tuple[str, list[tuple[str, str, str]]]]:
    """By key what PEFT takes for patterns: the method of `re`, the form it puts the text into, the text."""
    for key, how, form in (
        ("target_modules", "fullmatch", "PATTERN"),
        ("exclude_modules", "fullmatch", "PATTERN"),
        ("layers_pattern", "match", r"(?:^|.*?\.)PATTERN\.(?P<idx>\d+)\."),
        ("rank_pattern", "match", r"(.*\.)?(PATTERN)$"),
        ("alpha_pattern", "match", r"(.*\.)?(PATTERN)$"),
    ):
        value = config.get(key)
        # A list of modules is one of names; of layers, one of patterns. The other two map patterns to numbers.
        texts = [value] if isinstance(value, str) else list(value or ()) if "_pattern" in key else []
        yield key, [(how, form, text) for text in texts if isinstance(text, str)]
