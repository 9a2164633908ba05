"""Paths and prompts on the command line are taken as typed, for every such setting of every command."""

from __future__ import annotations

import os
import pwd
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from src.cli import command as cli
from src.cli.compose import compose
from src.cli.prompt_source import read_prompts, take_out
from src.cli.sweep import Job
from src.config.commands import ROOT_SCHEMAS, settings_of
from src.config.errors import UserError
from src.config.setting import PATH, PATHS, TEXT
from src.config.typed_words import as_typed

# Words of the schema that are neither a path nor a prompt: names out of lists, or of things on the hub.
PLAIN = {
    *("dtype", "layout", "kernels", "accelerator", "precision", "strategy", "embedding", "mode", "metric", "monitor"),
    *("name", "kl", "kl_in", "logp", "penalties_on", "schedule", "combine", "on_error", "normalise", "graph", "host"),
    *("repository", "detector_repository", "clip_repository", "base_repository", "repo", "license", "_target_"),
    *("dataset_config", "split", "columns", "experiment", "experiment_name", "registered_name", "parent", "model_name"),
    *("targets", "devices", "activation_checkpointing", "plugins", "kinds", "best_of_by", "baseline", "log_level"),
    *("sizes", "parts", "model", "rewards", "data", "algorithm", "trainer", "logger", "experts"),
}
TYPED = sorted(
    (root, key) for root in ROOT_SCHEMAS for key, setting in settings_of(root).items() if setting.typed is not None
)
# Everything the shell hands over but NUL, half of it what Hydra's grammar or OmegaConf's would make something of.
LETTERS = st.sampled_from("~=[]{}(),:;'\"\\ #$%&*+-./@!?<>|^`aZ09_\tü猫\n") | st.characters(
    exclude_characters="\0", exclude_categories=("Cs",)
)
PIECES = st.lists(
    LETTERS | st.sampled_from(["${", "${b}", "${no.such}", "${or: this}", "\\\\${"]), min_size=1, max_size=12
)
NAMES = PIECES.map("".join).filter(lambda text: not escapes(text) and text != "???")


def escapes(text: str) -> bool:
    r"""Whether some ``${`` has an odd number of backslashes before it: the user's own way to say that it is letters."""
    return re.search(r"(?<!\\)(\\\\)*\\\$\{", text) is not None


def unquoted(text: str) -> bool:
    """Whether a value is no word that keeps its meaning: null, something in quotes, several paths."""
    return text.lower() != "null" and text[0] + text[-1] not in ("''", '""', "[]", "{}") and text[0] != "~"


def test_every_word_of_the_schema_is_declared_or_plain() -> None:
    """A new setting has to say what it is: path_field, paths_field, text_field, or a plain word named here."""
    for root in ROOT_SCHEMAS:
        for key, setting in settings_of(root).items():
            number_or_switch = setting.number is not None or setting.typed is not None
            value = _default(root, key)
            if number_or_switch or isinstance(value, bool) or key.rpartition(".")[2] in PLAIN:
                continue
            assert key in {"merge_rollout", "model.merge_rollout", "optim.split_levels"} or isinstance(value, dict), key


def _default(root: str, key: str) -> Any:
    from src.config.schema import GROUP_SCHEMAS

    group, _, rest = key.partition(".")
    node: Any = GROUP_SCHEMAS[group]() if group in GROUP_SCHEMAS and rest else ROOT_SCHEMAS[root]()
    for part in (rest if group in GROUP_SCHEMAS and rest else key).split("."):
        node = getattr(node, part)
    return vars(node) if hasattr(node, "__dataclass_fields__") else node


def test_there_are_paths_in_every_command() -> None:
    assert {root for root, _ in TYPED} == set(ROOT_SCHEMAS)
    assert {("config", "run.dir"), ("export", "out"), ("score_geneval", "images"), ("serve_rewards", "token_file")} <= {
        *TYPED
    }


def read_back(words: list[str], root: str) -> Callable[[str], Any]:
    """What a config holds for overrides, by key: read by Hydra, looked up by OmegaConf; nothing is composed."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    parsed = OverridesParser.create().parse_overrides(as_typed(words, root))
    found = {override.key_or_group: OmegaConf.create({"it": override.value()}).it for override in parsed}
    return found.__getitem__


@given(st.sampled_from(TYPED), NAMES.filter(unquoted), st.sampled_from(["", "+", "++"]))
@settings(max_examples=400)
def test_hydra_reads_what_was_typed(setting: tuple[str, str], value: str, sign: str) -> None:
    root, key = setting
    assert read_back([f"{sign}{key}={value}"], root)(key) == value


GROUPS = {"evaluate": ["data=shapes", "rewards=shapes"]}
ODD = "a=b, c[1]{2}(3): 'x' \"y\" #d $e ~f; ü猫\\"


@pytest.mark.parametrize("root", sorted(ROOT_SCHEMAS))
def test_a_command_gets_what_was_typed(root: str) -> None:
    """The whole way, every path and word of a command: composed, checked, ``~`` expanded."""
    kinds = {key: settings_of(root)[key].typed for of, key in TYPED if of == root}
    config = compose([*GROUPS.get(root, ()), *(f"{key}=~/{ODD}" for key in kinds)], root)
    for key, kind in kinds.items():
        home = "~" if kind == TEXT else str(Path.home())
        assert OmegaConf.select(config, key) == f"{home}/{ODD}", key


@given(st.lists(NAMES.filter(str.strip), min_size=1, max_size=3))
def test_prompts_are_taken_as_typed(prompts: list[str]) -> None:
    """Whatever brackets, quotes and signs stand in them; only spaces around a prompt are dropped."""
    source, others = take_out([*(f"prompts={prompt}" for prompt in prompts if prompt != "-"), "n=2"])
    assert others == ["n=2"]
    if source.texts and all(text.isprintable() for text in source.texts):
        assert [record.prompt for record in read_prompts(source)] == [text.strip() for text in source.texts]


@pytest.mark.parametrize(
    ("words", "key", "expected"),
    [
        ("run.dir=null", "run.dir", None),
        ("run.dir='a,b'", "run.dir", "a,b"),
        ('run.dir="it\'s"', "run.dir", "it's"),
        ("run.dir=it's", "run.dir", "it's"),
        ("run.dir='a'b'", "run.dir", "'a'b'"),
        ("run.dir=${run.root}/b", "run.dir", "runs/b"),
        ("run.dir=${ run.root }/b", "run.dir", "runs/b"),
        ("run.dir=${run[root]}/b", "run.dir", "runs/b"),
        ("run.dir='${run.root}/b, c'", "run.dir", "runs/b, c"),
        ("run.dir=a/${oc.env:LETTERS}", "run.dir", "a/of the environment"),
        (r"run.dir=\${run.root}/b", "run.dir", "${run.root}/b"),
        ("run.dir=there/a${b}", "run.dir", "there/a${b}"),
        ("run.dir='there/a${b}'", "run.dir", "there/a${b}"),
        ("run.dir=a${b", "run.dir", "a${b"),
        ("data.path=a${", "data.path", "a${"),
        ("run.dir=${b}${run.root}${c:d}", "run.dir", "${b}runs${c:d}"),
        ("rewards.remote.url=http://host/${b}", "rewards.remote.url", "http://host/${b}"),
        ("run.dir=1e3", "run.dir", "1e3"),
        ("run.dir=true", "run.dir", "true"),
        ("run.dir=[a]", "run.dir", "[a]"),
        ("run.dir=$HOME", "run.dir", "$HOME"),
        ("resume=a=b", "resume.path", "a=b"),
        ("resume=auto", "resume.path", "auto"),
    ],
)
def test_words_that_keep_their_meaning(
    monkeypatch: pytest.MonkeyPatch, words: str, key: str, expected: str | None
) -> None:
    monkeypatch.setenv("LETTERS", "of the environment")
    assert OmegaConf.select(compose([words]), key) == expected


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("adapters=runs/a,b", "runs/a,b"),
        ("adapters=[~/a, runs/b=1]", [f"{Path.home()}/a", "runs/b=1"]),
        ("adapters=[a${b}, '${c}']", ["a${b}", "${c}"]),
        ("adapters=['runs/a,b','~/c']", ["runs/a,b", f"{Path.home()}/c"]),
        ("adapters={first: ~/a, second: runs/b}", {"first": f"{Path.home()}/a", "second": "runs/b"}),
    ],
)
def test_several_paths(words: str, expected: Any) -> None:
    found = compose([words], "evaluate").adapters
    assert (OmegaConf.to_container(found, resolve=True) if OmegaConf.is_config(found) else found) == expected


def test_the_paths_and_words_of_experts() -> None:
    config = compose(["rewards=hps", "rewards.experts.hps.path=~/a=b, c[1].pt", "rewards.experts.hps.tokenizer=~/t"])
    assert config.rewards.experts.hps.path == f"{Path.home()}/a=b, c[1].pt"
    assert config.rewards.experts.hps.tokenizer == f"{Path.home()}/t"
    question = 'Is it {prompt}: yes, or no? (a="b")'
    config = compose(["rewards=vlm_judge", f"rewards.experts.vlm_judge.question={question}"])
    assert config.rewards.experts.vlm_judge.question == question


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("run.dir=", "run.dir=: expected a path, or null"),
        ("run.dir=~nobody_of_that_name/x", "run.dir=~nobody_of_that_name/x: there is no user 'nobody_of_that_name'"),
        ("run.dir=${run.nope}", "run.dir: in a path, ${...} stands for another setting"),
        ("run.dir=a${run.root", "run.dir=a${run.root: ${key} stands for another setting, and this is not the form"),
        ("data.path=a${run", "data.path=a${run: ${key} stands for another setting"),
    ],
)
def test_paths_that_cannot_be_meant(words: str, expected: str) -> None:
    with pytest.raises(UserError) as caught:
        compose([words])
    assert str(caught.value).startswith(expected)


def test_home_folders(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert compose(["run.dir=~"]).run.dir == str(tmp_path)
    assert compose([f"run.dir=~{pwd.getpwuid(0).pw_name}/x"]).run.dir == f"{pwd.getpwuid(0).pw_dir}/x"
    # A folder here whose name begins with ~: pathlib would drop the dot, and expand what is left.
    found = compose(["run.dir=./~x/y"]).run.dir
    assert Path(found).expanduser() == Path(os.getcwd()) / "~x" / "y"


def test_a_config_files_paths_are_expanded_too() -> None:
    """Not only those of the command line."""
    from src.config.typed_words import expand_paths

    config = compose([])
    OmegaConf.set_struct(config, False)
    config.data.path, config.run.root = "~/prompts", "~/runs"
    expand_paths(config, "config")
    assert config.data.path == f"{Path.home()}/prompts"
    assert config.run.root == f"{Path.home()}/runs"


def swept(words: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Any]:
    """The configs of a sweep's jobs, run by Hydra itself."""
    seen: list[Any] = []

    def task(config: Any) -> int:
        seen.append(OmegaConf.to_container(config, resolve=True))
        return 0

    monkeypatch.setattr(Job, "__reduce__", object.__reduce__, raising=False)
    monkeypatch.chdir(tmp_path)
    command = cli.Command("train", "about", (), task, sweeps=True)
    assert cli.run(command, [*words, "-m", "logger=csv"]) == 0
    return seen


def test_sweeps_go_on_working(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    jobs = swept(["run.seed=1,2", "run.root=~/a=b", "data.path=x[1],~/w"], monkeypatch, tmp_path)
    assert [(job["run"]["seed"], job["data"]["path"]) for job in jobs] == [
        (seed, path) for seed in (1, 2) for path in ("x[1]", f"{tmp_path}/w")
    ]
    assert {job["run"]["root"] for job in jobs} == {f"{tmp_path}/a=b"}
    assert not (tmp_path / "~").exists(), "Hydra makes the folder of a sweep where the path says"
    jobs = swept(["data.path=x,'y,z'"], monkeypatch, tmp_path)
    assert [job["data"]["path"] for job in jobs] == ["x", "y,z"]
    jobs = swept(["data.path=${b},'${c},d',${run.name}/e", "run.root=a${b}"], monkeypatch, tmp_path)
    assert [job["data"]["path"] for job in jobs] == ["${b}", "${c},d", "run/e"]
    assert {job["run"]["root"] for job in jobs} == {"a${b}"}
    jobs = swept(["run.seed=choice(1,2)", "run.dir='a,b'"], monkeypatch, tmp_path)
    assert [(job["run"]["seed"], job["run"]["dir"]) for job in jobs] == [(1, "a,b"), (2, "a,b")]


def test_kinds_are_what_the_walk_says() -> None:
    assert {settings_of(root)[key].typed for root, key in TYPED} == {PATH, PATHS, TEXT}
