"""Command lines: whatever is typed composes (exit code 0) or ends in one message and exit code 2."""

from __future__ import annotations

import re
import sys
from typing import Any

import pytest
from hypothesis import strategies as st
from omegaconf import OmegaConf

from src.cli import command as cli
from src.cli.errors import config_keys, group_options
from src.config.commands import ROOT_SCHEMAS
from src.config.errors import UserError
from src.config.schema import GROUP_SCHEMAS
from src.evaluate.contestants import Contestant
from tests.fuzz.budget import MORE, fuzz
from tests.fuzz.damage import EDITS, damaged, json_values, texts

ROOTS = sorted(ROOT_SCHEMAS)
KEYS = sorted({key for root in ROOTS for key in config_keys(root)} | {"experiment", "resume", "hydra.run.dir", "hydra"})
VALUES = [
    *(
        "1",
        "-1",
        "0",
        "0.5",
        "1e400",
        "nan",
        "inf",
        "-.inf",
        "null",
        "true",
        "[]",
        "{}",
        "[1,2]",
        "{a: 1}",
        "''",
        "???",
    ),
    *("${run.name}", "${run}", "${nope}", "${oc.env:NOPE}", "${oc.env:HOME}", "${oc.decode:1}", "${oc.select:x,1}"),
    *(
        "${oc.create:{a:1}}",
        "${root:}",
        "${.a}",
        "${..a}",
        "${",
        "$",
        "${a",
        "a,b",
        "choice(1,2)",
        "range(1,3)",
        "glob(*)",
    ),
    *(
        "{_target_: os.system}",
        "[{_target_: os.system}]",
        "src.data.module.PromptDataModule",
        "os.system",
        "../..",
        "a=b",
    ),
    *(
        "[" * 50,
        "{a: " * 50,
        "'",
        '"',
        "\\",
        "a\0b",
        "1" * 5000,
        "é",
        "\u2028",
        "eight",
        "[os]",
        "[my_rewards]",
        "=",
        "==",
        ":",
    ),
    *("0x10", "1_000", "2024-01-01", "!!python/object:os.system", "*a", "&a", "sum(1,2)", "int(3)", "str([)"),
]
keys = st.sampled_from(KEYS) | st.text("abc._-/@[]0", max_size=12) | texts
values = st.sampled_from(VALUES) | texts | st.integers().map(str) | json_values.map(str)
overrides = st.one_of(
    st.builds("{}{}={}".format, st.sampled_from(["", "+", "++", "~"]), keys, values),
    st.builds("~{}".format, keys | st.sampled_from(sorted(ROOT_SCHEMAS["config"].__dataclass_fields__))),
    st.builds(
        lambda group, pick: f"{group}={group_options(group)[pick % len(group_options(group))]}",
        st.sampled_from(sorted({*GROUP_SCHEMAS, "experiment"})),
        st.integers(0, 99),
    ),
    st.builds(
        lambda word, edits: damaged(word.encode(), edits).decode(errors="surrogateescape"),
        st.sampled_from(["algorithm.beta=0.01", "+rewards.experts.x._target_=os.system", "data.columns={a: b}"]),
        EDITS,
    ),
    texts,
).filter(lambda word: not word.startswith(("-", "hydra.searchpath", "+hydra.searchpath")))
# Those that compose, alone and beside an odd one.
sound = st.sampled_from(
    [
        *("run.seed=3", "+data.columns.prompt=text", "algorithm=dapo", "algorithm.beta=0", "rewards=vqa", "logger=csv"),
        *(
            "model=janus_pro_1b",
            "rollout.plan.top_k=5",
            "optim.betas=[0.9,0.99]",
            "run.name=${oc.env:HOME,x}_",
            "resume=auto",
        ),
        *(
            "plugins=[my_rewards]",
            "rewards.weights={shapes: 2}",
            "experiment=grpo",
            "trainer=fsdp",
            "watchdog.seconds=null",
        ),
    ]
)
command_lines = st.one_of(
    st.tuples(st.sampled_from(ROOTS), st.lists(overrides, min_size=1, max_size=3)),
    st.tuples(st.just("config"), st.lists(sound, min_size=1, max_size=4)),
    st.tuples(st.just("config"), st.tuples(sound, overrides).map(list)),
    st.tuples(st.sampled_from(ROOTS), overrides.map(lambda word: [word])),
)


def _finish(config: Any) -> int:
    """What every task may do with its config: ask for all that is in it."""
    assert isinstance(OmegaConf.to_container(config, resolve=True), dict)
    for section in ("run", "rollout", "optim") if "trainer" in config else ():
        assert config[section] is not None
    return 0


def _one(command: cli.Command, words: list[str], capsys: pytest.CaptureFixture[str]) -> int:
    code = cli.run(command, words)
    said = capsys.readouterr()
    assert code in (0, 2)
    assert (code == 2) == said.err.startswith("error: ")
    assert len(said.err) < 20_000
    return code


@pytest.mark.parametrize("many", MORE)
def test_command_lines(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, many: int | None) -> None:
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)

    def check(given: tuple[str, list[str]]) -> str:
        root, words = given
        name = "train" if root == "config" else root
        command = cli.Command(name, "about", (), _finish, config=root)
        code = _one(command, words, capsys)
        # What composes can also be shown.
        assert code == 2 or _one(command, [*words, "--cfg", "job"], capsys) == 0
        return f"code {code}"

    fuzz("command line", command_lines, check, 20, None if many is None else many // 4)


def test_names_of_models() -> None:
    """A name on the command line is one part of a path, whatever it holds."""

    def check(name: str) -> str:
        folder = Contestant(name).folder_name
        assert re.fullmatch(r"[\w.-]{0,100}", folder)
        assert not folder.startswith(".")
        return "kept" if folder == name else "changed"

    fuzz("names of models", texts, check, 50, None, share=0.05)


def test_plugins_do_not_widen() -> None:
    """Whatever text stands in `plugins`, it never allows a target that does not lie below it."""
    from src.config.allowed_targets import check_part
    from src.config.factories import SLOTS

    def check(given: tuple[str, str]) -> str:
        plugin, target = given
        try:
            check_part({"_target_": target}, "expert", [plugin], "key")
        except UserError:
            return "refused"
        assert target in SLOTS["expert"].factories or target.startswith(f"{plugin}.")
        return "allowed"

    names = st.text("ab._", max_size=6) | texts | st.sampled_from(["os", "os.path", "src.data.x"])
    pairs = st.tuples(names, names) | names.map(lambda name: (name, f"{name}.x"))
    fuzz("plugins", pairs, check, 100, None, share=0.05)
