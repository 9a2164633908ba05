"""The child process of `src.text.bounded_work`: renders a chat template or tries patterns, within limits of time
and memory.

Run as a file, so that nothing of this project is imported. It reads a request (JSON) from standard input and writes
its answer, or ``{"error": "..."}``. Templates get the environment of transformers' chat templates.
"""

from __future__ import annotations

import json
import re
import sys
from datetime import datetime
from typing import Any


def limit(seconds: int, bytes_: int) -> None:
    """Bound this process: the kernel ends it after `seconds` of computing, and refuses it memory above `bytes_`."""
    try:
        import resource
    except ImportError:  # no such thing on Windows, where the parent's clock is the only limit
        return
    for what, most in ((resource.RLIMIT_CPU, seconds), (resource.RLIMIT_AS, bytes_), (resource.RLIMIT_CORE, 0)):
        try:
            resource.setrlimit(what, (most, most))
        except (OSError, ValueError):  # a lower limit is there already
            continue


def environment() -> Any:
    """Jinja's sandbox with the settings, filters and globals that transformers gives chat templates."""
    import jinja2
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """``{% generation %}`` marks the assistant's words for training; nothing is marked here."""

        tags = {"generation"}  # noqa: RUF012 (as jinja declares it)

        def parse(self, parser: Any) -> Any:
            next(parser.stream)
            return parser.parse_statements(["name:endgeneration"], drop_needle=True)

    def raise_exception(message: str) -> None:
        raise jinja2.TemplateError(message)

    def tojson(value: Any, ensure_ascii: bool = False, indent: Any = None, **options: Any) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **options)

    made = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols])
    made.filters["tojson"] = tojson
    made.globals["raise_exception"] = raise_exception
    made.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return made


def rendered(template: Any, variables: dict[str, Any], longest: int) -> str:
    """The text of a compiled template; raises ValueError where it is longer than `longest` letters."""
    parts, length = [], 0
    for part in template.generate(**variables):
        parts.append(part)
        length += len(part)
        if length > longest:
            raise ValueError(f"writes more than {longest} characters")
    return "".join(parts)


def render(request: dict[str, Any]) -> dict[str, Any]:
    """``{"texts": [...]}``: a template with each of several variables."""
    template = environment().from_string(request["template"])
    return {"texts": [rendered(template, one, request["longest"]) for one in request["variables"]]}


def match(request: dict[str, Any]) -> dict[str, Any]:
    """``{"matched": n}``: how often a pattern fits a name, each of them tried on every name.

    Patterns come as pairs of a method of compiled patterns (``match``, ``fullmatch``) and a text.
    """
    tried = [getattr(re.compile(text), how) for how, text in request["patterns"]]
    return {"matched": sum(one(name) is not None for one in tried for name in request["names"])}


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """What the request asks for, or what is wrong with the template or pattern in it."""
    try:
        return {"render": render, "match": match}[request["work"]](request)
    except MemoryError:
        return {"error": "needs too much memory"}
    except RecursionError:
        return {"error": "calls itself without an end" if request["work"] == "render" else "goes too deep"}
    except Exception as error:  # whatever a template raises, its sandbox's refusals among it
        return {"error": f"cannot be used ({type(error).__name__}: {' '.join(str(error).split())[:300]})"}


if __name__ == "__main__":
    asked = json.load(sys.stdin)
    limit(asked["seconds"], asked["bytes"])
    json.dump(answer(asked), sys.stdout)
