"""A run folder's config.yaml: written so that it reads as it was, read as data, whoever wrote it."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from src.build import plain
from src.cli.compose import compose
from src.cli.errors import group_options
from src.config.errors import UserError
from src.config.masking import masked
from src.config.yaml_bounds import MAX_BYTES
from src.runs.config import SECTIONS, config_text, literal, read_run_config, write_run_config

SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.text("\\${}a:.'\"")
PLAIN = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3))
# Each is what a config.yaml holds after `model: {path: x}`, and a part of the message.
HOSTILE = {
    "environment": ("rewards: {remote: {url: 'http://x/${oc.env:BICOT_TEST_VARIABLE}'}}", "rewards.remote.url"),
    "environment_in_a_list": ("kinds: [a, '${oc.env:BICOT_TEST_VARIABLE}']", "kinds[1]"),
    "resolver": ("data: {path: '${root:}/x'}", "data.path"),
    "unknown_resolver": ("data: {path: '${nobody:x}'}", "data.path"),
    "another_key": ("data: {path: '${model.path}'}", "data.path"),
    "missing_key": ("data: {path: '${model.nothing}'}", "data.path"),
    "loop": ("data: {path: '${data.path}'}", "data.path"),
    "after_backslashes": (r"data: {path: '\\${model.path}'}", "data.path"),
    "not_closed": ("data: {path: '${model'}", "data.path"),
    "missing": ("data: {path: '???'}", "data.path"),
    "alias": ("a: &x [1]\nb: *x", "&x"),
    "alias_of_itself": ("a: &x [*x]", "&x"),
    "merge_key": ("a: &x {b: 1}\nc: {<<: *x}", "&x"),
    "tag": ("a: !!python/object/apply:os.system [ls]", "tags"),
    "path_tag": ("a: !!python/object/apply:pathlib.PosixPath [x]", "tags"),
    "binary_tag": ("a: !!binary aGFsbG8=", "tags"),
    "two_documents": ("---\na: 1", "not valid YAML"),
    "same_key_twice": ("a: 1\na: 2", "duplicate"),
    "long_number": (f"a: {'1' * 5000}", "cannot be read"),
    "deep": ("a: " + "[" * 5000, "config.yaml:2: "),
    "deep_mappings": ("a: " + "{a: " * 200 + "1" + "}" * 200, "deep"),
    "many_values": ("a: [" + "1," * 100_000 + "]", "more than a config can hold"),
    "long": ("a: " + "x" * MAX_BYTES, "longer than"),
    "control_character": ("a: \x07", "not valid YAML"),
    "section_that_is_none": ("rollout: 3", "rollout=3"),
    "section_that_is_a_list": ("evaluation: [1]", "evaluation="),
    "null_section": ("data:", "data=None"),
}
# And these are the whole of it.
DAMAGED = {
    "empty": b"",
    "list": b"- 1\n- 2\n",
    "text": b"hello",
    "number": b"3",
    "null": b"null",
    "binary": bytes(range(256)) * 10,
    "another_programs": b"services:\n  web: {image: x}\n",
    "cut": b"model:\n  path: 'x",
    "utf16": "model: {path: x}".encode("utf-16"),
}


def aliases(levels: int, width: int) -> str:
    lines = ["a0: &a0 [" + ",".join(["x"] * width) + "]"]
    lines += [f"a{i}: &a{i} [" + ",".join([f"*a{i - 1}"] * width) + "]" for i in range(1, levels)]
    return "\n".join(lines)


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("BICOT_TEST_VARIABLE", "the-secret-of-this-machine")
    return tmp_path / "config.yaml"


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_config_that_is_more_than_data_is_refused_at_once(config: Path, kind: str) -> None:
    text, told = HOSTILE[kind]
    config.write_text("model: {path: x}\n" + text + "\n", encoding="utf-8")
    start = time.perf_counter()
    with pytest.raises(UserError) as caught:
        read_run_config(config)
    assert time.perf_counter() - start < 5
    assert str(config) in str(caught.value)
    assert told in str(caught.value)
    assert "the-secret-of-this-machine" not in str(caught.value)
    assert len(str(caught.value)) < 1000 + len(str(config))


@pytest.mark.parametrize("kind", DAMAGED)
def test_what_is_no_runs_config_is_told_as_such(config: Path, kind: str) -> None:
    config.write_bytes(DAMAGED[kind])
    with pytest.raises(UserError, match=r"config\.yaml"):
        read_run_config(config)


def test_an_alias_bomb_is_refused_in_time(config: Path) -> None:
    """3 KB that stand for 9^12 texts."""
    config.write_text("model: {path: x}\n" + aliases(12, 9), encoding="utf-8")
    assert config.stat().st_size < 3000
    start = time.perf_counter()
    with pytest.raises(UserError, match=r"config\.yaml:2: &a0"):
        read_run_config(config)
    assert time.perf_counter() - start < 1


def test_a_config_is_no_link_to_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "other.yaml").write_text("model: {path: x}\n", encoding="utf-8")
    (tmp_path / "run" / "config.yaml").symlink_to(tmp_path / "other.yaml")
    with pytest.raises(UserError, match="link out of the run's folder"):
        read_run_config(tmp_path / "run" / "config.yaml")
    os.replace(tmp_path / "other.yaml", tmp_path / "run" / "own.yaml")
    (tmp_path / "run" / "config.yaml").unlink()
    (tmp_path / "run" / "config.yaml").symlink_to("own.yaml")
    assert read_run_config(tmp_path / "run" / "config.yaml") == {"model": {"path": "x"}}


@given(PLAIN)
def test_plain_data_stays_what_it_is(value: Any) -> None:
    """As a node, and through YAML: a text with ${ in it, too, which OmegaConf would look up."""
    held: Any = {"a": value}
    if "???" in repr(value):
        return  # OmegaConf's own word for what is missing
    assert OmegaConf.to_container(literal(held), resolve=True) == held


WORDS = st.text(st.characters(codec="utf-8", exclude_categories=("Cs", "Cc")), max_size=30) | st.text("\\${}a:.'\" \n")
MIDDLES = ("${oc.env:HOME}", "${", "$", r"\${x}", r"\\${x}", "${x", "${a.b}${a.b}", "$${x}", "")


@given(st.tuples(WORDS, st.sampled_from(MIDDLES), WORDS).map("".join))
def test_what_a_user_wrote_comes_back(tmp_path_factory: pytest.TempPathFactory, name: str) -> None:
    if name == "???":
        return
    config: dict[str, Any] = {"run": {"name": name}, "rewards": {"experts": {"judge": {"question": [name, "x"]}}}}
    path = tmp_path_factory.getbasetemp() / "config.yaml"
    path.write_text(config_text_unmasked(config), encoding="utf-8")
    assert read_run_config(path) == config


def config_text_unmasked(config: dict[str, Any]) -> str:
    """As `config_text`, which may take odd words for secrets."""
    return OmegaConf.to_yaml(literal(config))


@pytest.mark.parametrize("experiment", group_options("experiment"))
def test_every_shipped_config_comes_back(tmp_path: Path, experiment: str) -> None:
    config = plain(compose([f"experiment={experiment}"]))
    write_run_config(tmp_path / "config.yaml", config)
    assert read_run_config(tmp_path / "config.yaml") == masked(config)


def test_secrets_are_masked_and_sections_known(tmp_path: Path) -> None:
    from dataclasses import fields

    from src.config.schema import Config

    (tmp_path / "config.yaml").write_text(config_text({"logger": {"api_key": "swordfish"}}), encoding="utf-8")
    assert read_run_config(tmp_path / "config.yaml") == {"logger": {"api_key": "********"}}
    assert set(SECTIONS) == {item.name for item in fields(Config)} - {"kernels", "plugins"}
