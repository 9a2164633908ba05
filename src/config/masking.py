"""Secrets are masked in what a run writes and says: passwords, tokens and keys by their name, in URLs, by their look.

What was told once as a secret, in a config or in the environment, is masked wherever it turns up later: in an
error message of a library as well as in a tag.
"""

from __future__ import annotations

import os
import re
import sys
import traceback
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Any

MASK = "********"
# Shorter ones are masked under their key, but not looked for elsewhere: they would blank out ordinary words.
SHORTEST_KNOWN = 6
_KEYS = "(?:api|access|secret|private)[_-]?key"
_SECRET = f"(?:token|password|passwd|passphrase|pwd|secret|credentials?|authorization|{_KEYS})"
_SECRET_NAME = re.compile(rf"(?:.*[._-])?{_SECRET}", re.IGNORECASE)
# What tokenizers call their special tokens; the shell's working directory.
_NO_SECRET = re.compile(r"pwd|(?:.*[._-])?(?:bos|eos|pad|unk|cls|sep|mask|image|start|end)_token", re.IGNORECASE)
_CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
# user:password@ or token@ in front of a host; a database's password may hold slashes.
_URL = re.compile(r"(?<=://)(?:[^\s/]*|[^\s/:@]*:[^\s@]*)@")
_QUERY = re.compile(
    r"(?<=[?&;])([\w.~-]*?(?:key|token|password|secret|signature|sig|auth|credential))=[^&;\s#'\"]+", re.I
)
_NAMED = re.compile(
    rf"(?<![?&;\w.\[\]-])(?P<name>[\w.\[\]-]*{_SECRET})(?P<sign>=|[\"']\s*:\s*|:\s*(?=[\"']))(?P<value>\"[^\"]*\"|'[^']*'|[^\s,}}\])]+)",
    re.I,
)
_HEADER = re.compile(r"\b(bearer|basic)\s+[\w.~+/=-]{8,}", re.IGNORECASE)
# Hugging Face, GitHub, GitLab, OpenAI, Slack, AWS; JSON web tokens.
_LOOKS = re.compile(
    r"\b(?:hf_\w{16,}|gh[oprsu]_\w{20,}|github_pat_\w{20,}|glpat-[\w-]{16,}|sk-[\w-]{20,}|xox[abprs]-[\w-]{10,}"
    r"|AKIA[0-9A-Z]{16}|eyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]+)"
)
_known: set[str] = set()


def is_secret_name(name: str) -> bool:
    """Whether a key's or a variable's name says that a secret stands behind it (``api_key``, ``HF_TOKEN``)."""
    snake = _CAMEL.sub("_", name)
    return _SECRET_NAME.fullmatch(snake) is not None and _NO_SECRET.fullmatch(snake) is None


def masked(value: Any, secret: bool = False) -> Any:
    """Plain config data with every secret masked; numbers, too, under a name that says so.

    secret: whether `value` itself stands under such a name. null, true and false stay, and so do empty texts.
    """
    if isinstance(value, Mapping):
        return {key: masked(inner, secret or is_secret_name(str(key))) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [masked(inner, secret) for inner in value]
    if value is None or isinstance(value, bool) or value == "":
        return value
    if secret:
        return MASK
    return masked_text(value) if isinstance(value, str) else value


def masked_text(text: str) -> str:
    """`text` with every secret in it masked: known ones, those in URLs and behind a name, those that look like one."""
    for secret in sorted({*_known, *_of_environment()}, key=len, reverse=True):
        text = text.replace(secret, MASK)
    text = _URL.sub(f"{MASK}@", text)
    text = _QUERY.sub(rf"\1={MASK}", text)
    text = _NAMED.sub(_named, text)
    text = _HEADER.sub(rf"\1 {MASK}", text)
    return _LOOKS.sub(MASK, text)


def learn(config: Any) -> None:
    """Remember the secrets of plain config data for `masked_text`, as long as this process lives."""
    _known.update(secret for secret in _secrets(config) if len(secret) >= SHORTEST_KNOWN)


def masked_keys(node: Any, key: str) -> list[str]:
    """The dotted keys, from `key` on, whose value was masked when it was written."""
    if isinstance(node, Mapping):
        return [found for name, inner in node.items() for found in masked_keys(inner, f"{key}.{name}")]
    if isinstance(node, list | tuple):
        return [found for number, inner in enumerate(node) for found in masked_keys(inner, f"{key}[{number}]")]
    return [key] if isinstance(node, str) and MASK in node else []


def mask_tracebacks() -> None:
    """Let an error that nobody expected be shown as ever, with secrets masked."""

    def show(kind: type[BaseException], error: BaseException, where: TracebackType | None) -> None:
        print(masked_text("".join(traceback.format_exception(kind, error, where))), end="", file=sys.stderr)

    sys.excepthook = show


def _named(match: re.Match[str]) -> str:
    if not is_secret_name(match["name"].strip("[]")):
        return match[0]
    quote = match["value"][0] if match["value"][0] in "\"'" else ""
    empty = match["value"].strip("\"'").lower() in ("", "null", "none", "true", "false")
    return match[0] if empty else f"{match['name']}{match['sign']}{quote}{MASK}{quote}"


def _of_environment() -> set[str]:
    found = {value for name, value in os.environ.items() if is_secret_name(name)}
    found |= set(_of_url(os.environ.get("MLFLOW_TRACKING_URI", "")))
    # ..._CREDENTIALS is often the path of a file, which is no secret and may be part of many others.
    return {secret for secret in found if len(secret) >= SHORTEST_KNOWN and not os.path.exists(secret)}


def _secrets(node: Any, secret: bool = False) -> Iterator[str]:
    if isinstance(node, Mapping):
        for key, inner in node.items():
            yield from _secrets(inner, secret or is_secret_name(str(key)))
    elif isinstance(node, list | tuple):
        for inner in node:
            yield from _secrets(inner, secret)
    elif node is not None and not isinstance(node, bool):
        if secret:
            yield str(node)
        elif isinstance(node, str):
            yield from _of_url(node)


def _of_url(text: str) -> Iterator[str]:
    """The passwords and lone tokens in the URLs of a text."""
    for match in _URL.finditer(text):
        user, colon, password = match[0][:-1].partition(":")
        yield password if colon else user
