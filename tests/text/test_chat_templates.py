"""Chat templates of a checkpoint: rendered once within limits, and then only filled in."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from src.text.chat_templates import PROBE, TemplateError, flatten
from tests.policies.tiny import tiny_tokenizer


def variables(words: Mapping[str, str]) -> dict[str, Any]:
    messages = [{"role": "user", "content": words["prompt"]}]
    return {"messages": messages, "plan": words.get("plan", ""), "bos_token": "<s>", "add_generation_prompt": True}


PROMPT = "{{ messages[0]['content'] }}"
LOOPS = "{% for i in range(100000) %}{% for j in range(100000) %}WITH{% endfor %}{% endfor %}"


@pytest.mark.parametrize(
    ("template", "problem"),
    [
        (LOOPS.replace("WITH", ""), "was stopped: it runs for more than 5 seconds"),
        (LOOPS.replace("WITH", "spam"), "writes more than 100000 characters"),
        ("{{ 'a' * 10**10 }}", "too much memory|was stopped"),
        ("{{ '%10000000000d' % 1 }}", "too much memory|was stopped"),
        ("{{ messages[0]['content'] | center(10**10) }}", "too much memory|was stopped"),
        ("{{ 10 ** (10 ** 9) }}", "was stopped|too much memory"),
        (
            "{% set n = namespace(a='aa') %}{% for i in range(64) %}{% set n.a = n.a ~ n.a %}{% endfor %}{{ n.a[0] }}",
            "too much memory|was stopped",
        ),
        ("{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}", "calls itself without an end|was stopped"),
        ("{% for i in [1] recursive %}{{ loop([1]) }}{% endfor %}", "calls itself without an end|was stopped"),
        ("{{ nobody.knows.this }}", "UndefinedError"),
        ("{% if", "TemplateSyntaxError"),
        ("{{ raise_exception('no system role') }}", "no system role"),
        ("{{ messages[0]['content'] | lower }}", "changes the words"),
        ("{{ messages | tojson }}", "changes the words"),
        (PROMPT + "{{ messages[0]['content'] | length }}", "depends on them"),
        ("a picture", "does not write the prompt"),
    ],
)
def test_what_a_template_may_not_do_ends_soon_and_says_so(template: str, problem: str) -> None:
    begun = time.monotonic()
    with pytest.raises(TemplateError, match=problem):
        flatten(template, ("prompt",), variables)
    assert time.monotonic() - begun < 70  # 5 seconds of computing, on a machine that may be busy


@pytest.mark.parametrize(
    "template",
    [
        "{{ bos_token }}" + PROMPT + "!",
        "{%- if true -%}\n  x\n{% endif %}\n" + PROMPT + "\n   {% if plan %}. {{ plan }}{% endif %}\n",
        "{% for message in messages %}{{ message['role'] }}: {{ message['content'] | trim }}\n{% break %}{% endfor %}",
        "{% generation %}{{ messages[0]['content'] }}{% endgeneration %}{{ {'a': '<é>'} | tojson }}",
        "{% set n = namespace(x=0) %}{% for i in range(4) %}{% set n.x = n.x + i %}{% endfor %}{{ n.x }}" + PROMPT,
        "{% macro say(x) %}[{{ x }}]{% endmacro %}{{ say(messages[0]['content']) }}{{ say(plan) }}",
        "{{ '}} \\n \"quotes\" \\u00e9' }}" + PROMPT + "{# a remark #}",
        "{% if add_generation_prompt %}{{ dict(a=1)['a'] }}{% endif %}" + PROMPT,
    ],
)
@pytest.mark.parametrize("plan", ["", 'a plan, with "marks" and {{ braces }}'])
def test_what_is_filled_in_is_what_transformers_renders(template: str, plan: str) -> None:
    names = ("prompt", "plan") if plan else ("prompt",)
    flat = flatten(template, names, variables)
    for prompt in ("a red circle", PROBE, "{% raw %}", "größer\\n"):
        expected = tiny_tokenizer().apply_chat_template(
            [{"role": "user", "content": prompt}],
            chat_template=template,
            tokenize=False,
            plan=plan,
            bos_token="<s>",
            add_generation_prompt=True,
        )
        assert flat.fill({"prompt": prompt, "plan": plan}) == expected


def test_a_checkpoint_with_an_endless_template_is_refused_before_its_weights_are_read(tmp_path: Path) -> None:
    import shutil

    from src.policies.load import load_janus
    from src.policies.weight_files import CheckpointError
    from tests.conftest import ROOT

    folder = shutil.copytree(ROOT / "src" / "shapes" / "checkpoint", tmp_path / "model")
    (folder / "model.safetensors").write_bytes(b"no weights")
    (folder / "additional_chat_templates" / "image.jinja").write_text(LOOPS.replace("WITH", ""), encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"model: chat template 'image': was stopped"):
        load_janus(folder)
