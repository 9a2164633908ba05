"""YAML and interpolations of configs that users pass on: bombs, loops and gaps end in one line, soon."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from omegaconf.base import Container

from src.cli import command as cli
from src.cli.compose import compose
from src.config.errors import UserError
from src.config.interpolation_bounds import MAX_CHAIN, MAX_LOOKUPS, bounded
from src.config.yaml_bounds import check_yaml
from src.train import COMMAND
from tests.runs.test_config import aliases

EXPERTS = "rewards:\n  experts:\n    a0: xx\n"


def doubled(line: str, levels: int = 40) -> str:
    """Experts a0, a1, ... of which each is `line` with the key before it in the place of KEY."""
    return EXPERTS + "".join(
        f"    a{i}: {line.replace('KEY', f'rewards.experts.a{i - 1}')}\n" for i in range(1, levels)
    )


# What an experiment file holds, and what the message says of it.
BOMBS = {
    "texts": (doubled("${KEY}${KEY}"), "more than a config can hold"),
    "sections": (doubled("{x: '${KEY}', y: '${KEY}'}"), "more than a config can hold"),
    "lists": (doubled("['${KEY}', '${KEY}']"), "more than a config can hold"),
    "selected": (doubled("'${oc.select:KEY}${oc.select:KEY}'"), "more than a config can hold"),
    "decoded": (doubled(r"""'${oc.decode:"\${KEY}\${KEY}"}'""".replace('"', "''")), "more than a config can hold"),
    "relative": (
        EXPERTS + "".join(f"    a{i}: ${{.a{i - 1}}}${{.a{i - 1}}}\n" for i in range(1, 40)),
        "more than a config can hold",
    ),
    "a_long_text_often": (
        f"rewards:\n  experts:\n    a0: {'x' * 100_000}\n    a1: {'${rewards.experts.a0}' * 5000}\n",
        "more than a config can hold",
    ),
    "a_long_chain": (doubled("${KEY}", 400), "rewards.experts.a"),
    "before_it_is_merged": (
        "hydra:\n  sweep:\n    dir: ${hydra.job.env_set.a39}\n  job:\n    env_set:\n      a0: xx\n"
        + "".join(
            f"      a{i}: ${{hydra.job.env_set.a{i - 1}}}${{hydra.job.env_set.a{i - 1}}}\n" for i in range(1, 40)
        ),
        "hydra.job.env_set.a",
    ),
    "aliases": (aliases(12, 9), "more than a config can hold"),
    "alias_of_itself": ("a: &x [*x]", "*x stands for nothing"),
    "deep": ("a: " + "[" * 20_000, "mine.yaml:2"),
    "long": ("a: 1\n" * 100_000, "longer than"),
    "binary": ("\x00\x01", "not valid YAML"),
    "loop": ("run: {name: '${run.root}', root: '${run.name}'}", "run."),
    "loop_of_sections": ("rewards: {experts: {a: '${rewards}'}}", "rewards.experts.a=${rewards}"),
    "itself": ("kernels: ${kernels}", "kernels=${kernels}"),
    "missing_key": ("run: {name: '${run.nothing}'}", "run.name=${run.nothing}"),
    "missing_variable": ("run: {name: '${oc.env:NOT_SET_ANYWHERE}'}", "set NOT_SET_ANYWHERE in the environment"),
    "unknown_resolver": ("run: {name: '${nobody:1}'}", "run.name=${nobody:1}"),
    "not_closed": ("run: {name: '${run'}", "run.name: not a valid ${...}"),
}


@pytest.mark.parametrize("flags", [("--cfg", "job"), ("-m",)], ids=["alone", "sweep"])
@pytest.mark.parametrize("kind", BOMBS)
def test_a_config_file_ends_in_one_line(
    kind: str, flags: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text, told = BOMBS[kind]
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text(f"# @package _global_\n{text}\n", encoding="utf-8")
    start = time.perf_counter()
    found = (f"hydra.searchpath=[file://{tmp_path}]", "experiment=mine", f"run.dir={tmp_path / 'run'}", "logger=csv")
    assert cli.run(COMMAND, [*found, *flags]) == cli.EXIT_WRONG_INPUT
    assert time.perf_counter() - start < 30  # on a busy machine; without the bounds: for ever
    captured = capsys.readouterr()
    assert told in captured.err
    assert len(captured.err.splitlines()) == 1
    assert not (tmp_path / "run").exists()


HOSTILE_WORDS = {
    "loop": ("run.name=${run.root}", "run.root=${run.name}"),
    "missing_key": ("kernels=${nothing.here}",),
    "missing_variable": ("kernels=${oc.env:NOT_SET_ANYWHERE}",),
    "unknown_resolver": ("kernels=${nobody:1}",),
    "dynamic_resolver": ("kernels=${${run.name}:1}",),
    "itself": ("+rewards.experts.a=${rewards.experts.a}",),
    "chain": (
        "+rewards.experts.a0=xx",
        *(f"+rewards.experts.a{i}=${{rewards.experts.a{i - 1}}}${{rewards.experts.a{i - 1}}}" for i in range(1, 40)),
    ),
    "deep": ("+rewards.experts.a=" + "[" * 300 + "]" * 300,),
}


@pytest.mark.parametrize("kind", HOSTILE_WORDS)
def test_words_of_a_command_line_end_in_one_line(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    start = time.perf_counter()
    assert cli.run(COMMAND, [*HOSTILE_WORDS[kind], "--cfg", "job"]) == cli.EXIT_WRONG_INPUT
    assert time.perf_counter() - start < 30
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_message_names_the_file_that_hydra_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Also one outside of configs/, for which it was once called a file in there."""
    (tmp_path / "experiment").mkdir()
    file = tmp_path / "experiment" / "mine.yaml"
    for text in ("run: {name: '${run.nothing}'}", "run: {nme: x}", "run: {name: *x}"):
        file.write_text(f"# @package _global_\n{text}\n", encoding="utf-8")
        with pytest.raises(UserError) as caught:
            compose([f"hydra.searchpath=[file://{tmp_path}]", "experiment=mine"])
        assert str(caught.value).startswith(str(file))


def test_a_package_on_the_search_path_is_bounded_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "bicot_test_configs"
    (package / "experiment").mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "experiment" / "mine.yaml").write_text("# @package _global_\n" + aliases(12, 9), encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(UserError, match=r"bicot_test_configs/experiment/mine\.yaml:"):
        compose(["hydra.searchpath=[pkg://bicot_test_configs]", "experiment=mine"])


def test_ordinary_anchors_and_references_go_through() -> None:
    check_yaml("a: &x {b: 1, c: [2, 3]}\nd: *x\ne: {<<: *x, b: 2}\nf: [*x, *x]\n", "f")
    references = {f"b{i}": "${a}/${c.d}" for i in range(200)}
    with bounded():
        held = OmegaConf.to_container(OmegaConf.create({"a": "x", "c": {"d": "${a}"}, **references}), resolve=True)
    assert held == {"a": "x", "c": {"d": "x"}, **dict.fromkeys(references, "x/x")}


def test_the_bounds_hold_inside_of_their_block_only() -> None:
    chain = {"a0": "x", **{f"a{i}": f"${{a{i - 1}}}" for i in range(1, MAX_CHAIN + 5)}}
    many = OmegaConf.create({"a": "x", **{f"b{i}": "${a}" for i in range(MAX_LOOKUPS)}})
    before = Container.resolve_parse_tree, Container._resolve_node_interpolation
    with pytest.raises(UserError, match="a1="), bounded():
        OmegaConf.to_container(OmegaConf.create(chain), resolve=True)
    with pytest.raises(UserError, match="more than a config can hold"), bounded():
        OmegaConf.to_container(many, resolve=True)
    # Each for itself they are few.
    with bounded(whole=False):
        OmegaConf.to_container(many, resolve=True)
    assert (Container.resolve_parse_tree, Container._resolve_node_interpolation) == before
    assert OmegaConf.create(chain).a24 == "x"
