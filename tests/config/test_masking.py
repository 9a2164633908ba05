"""Secrets: which names and texts count as such, and that a run writes none anywhere."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from src import build
from src.cli import command as cli
from src.cli.compose import compose
from src.config import masking
from src.config.errors import UserError
from src.config.masking import MASK, is_secret_name, learn, masked, masked_keys, masked_text
from src.config.schema import ROOT
from src.loggers.mlflow_journal import Journal, read_journal
from src.loggers.store import noted_uri
from src.runs.folder import RunFolder
from tests.training.runs import overrides, write_world

PLANTED = "pl4nted-Sup3rSecret"


@pytest.fixture(autouse=True)
def nothing_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """What one test tells as a secret is none in the next."""
    monkeypatch.setattr(masking, "_known", set())


@pytest.mark.parametrize(
    "name",
    "token password api_key apikey apiKey API_KEY access_key secret authorization HF_TOKEN WANDB_API_KEY accessToken"
    " MLFLOW_TRACKING_PASSWORD BICOT_REWARDS_TOKEN db.password x-api-key"
    " AWS_SECRET_ACCESS_KEY credentials db_pwd".split(),
)
def test_names_of_secrets(name: str) -> None:
    assert is_secret_name(name)


@pytest.mark.parametrize(
    "name",
    "max_plan_tokens token_file tokens eos_token pad_token image_token key keys num_tokens author authors tokenizer"
    " secretary PWD OLDPWD TOKENIZERS_PARALLELISM monkey passwords_allowed seed beta HF_TOKEN_PATH".split(),
)
def test_names_of_no_secrets(name: str) -> None:
    assert not is_secret_name(name)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://user:hunter22@host:5000/x", f"https://{MASK}@host:5000/x"),
        ("https://lonetoken@host/x", f"https://{MASK}@host/x"),
        ("postgresql+psycopg2://u:p/w#1@db/mlflow", f"postgresql+psycopg2://{MASK}@db/mlflow"),
        ("at http://u:a@b@host:1, refused", f"at http://{MASK}@host:1, refused"),
        ("http://h/x?a=1&token=hunter2&b=2", f"http://h/x?a=1&token={MASK}&b=2"),
        ("http://h/x?X-Amz-Signature=ab12#top", f"http://h/x?X-Amz-Signature={MASK}#top"),
        ("Authorization: Bearer abcdefgh123", f"Authorization: Bearer {MASK}"),
        ("+rewards.experts.x.api_key=hunter2 b=1", f"+rewards.experts.x.api_key={MASK} b=1"),
        ("x.password='hunter 2' b=1", f"x.password='{MASK}' b=1"),
        ('{"token": "hunter2", "beta": 1}', f'{{"token": "{MASK}", "beta": 1}}'),
        ("{'apiKey': 'hunter2'}", f"{{'apiKey': '{MASK}'}}"),
        ("got hf_abcdefghijklmnopqrst!", f"got {MASK}!"),
        ("AKIAABCDEFGHIJKLMNOP", MASK),
    ],
)
def test_texts(text: str, shown: str) -> None:
    assert masked_text(text) == shown
    assert masked_text(shown) == shown


@pytest.mark.parametrize(
    "text",
    [
        "sqlite:////home/me@work/runs/mlflow.db",
        "http://127.0.0.1:5000",
        "token_file=/etc/token.txt",
        "rollout.max_plan_tokens=256 algorithm.beta=0.01",
        "push_to_hub=true: no token of the hub; run `hf auth login`",
        "api_key=null",
        "mail me@example.org",
        "a prompt: two red squares left of a blue circle",
        "commit 668747a0c0ffee668747a0c0ffee668747a0c0ff",
    ],
)
def test_other_texts_stay(text: str) -> None:
    assert masked_text(text) == text


@settings(max_examples=60, deadline=None)
@given(st.text(st.characters(codec="utf-8", exclude_characters="/@?# ", exclude_categories=("Z", "C")), min_size=1))
def test_no_password_in_a_url_is_shown(password: str) -> None:
    text = masked_text(f"https://user:{password}@example.org/x")
    assert text == f"https://{MASK}@example.org/x"


def test_a_config_keeps_its_shape() -> None:
    config = {
        "a": {"token": "x", "password": 1234, "secret": None, "credentials": {"user": "u", "more": ["v"]}},
        "uri": "http://u:p@h",
        "list": [{"api_key": ""}, 3, True],
        "token_file": "t.txt",
    }
    assert masked(config) == {
        "a": {"token": MASK, "password": MASK, "secret": None, "credentials": {"user": MASK, "more": [MASK]}},
        "uri": f"http://{MASK}@h",
        "list": [{"api_key": ""}, 3, True],
        "token_file": "t.txt",
    }
    assert masked(masked(config)) == masked(config)
    assert masked_keys(masked(config), "x") == [
        *("x.a.token", "x.a.password", "x.a.credentials.user", "x.a.credentials.more[0]", "x.uri")
    ]


def test_what_was_told_once_is_masked_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    learn({"judge": {"api_key": "from-config-1"}, "uri": "http://u:from-url-22@h", "other": "no-secret"})
    monkeypatch.setenv("SOME_API_KEY", "from-environment")
    told = masked_text("from-config-1 from-url-22 from-environment no-secret")
    assert told == f"{MASK} {MASK} {MASK} no-secret"
    monkeypatch.delenv("SOME_API_KEY")
    assert masked_text("from-environment") == "from-environment"


def test_where_something_stands_is_no_secret(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A shell calls the working directory PWD, as others call a password."""
    (tmp_path / "key.json").touch()
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "key.json"))
    assert masked_text(f"{tmp_path}/key.json") == f"{tmp_path}/key.json"
    monkeypatch.setenv("PWD", "/somewhere/checkout")
    monkeypatch.setenv("OLDPWD", "/somewhere/else")
    monkeypatch.setenv("DB_PWD", "opensesame")
    told = masked_text("run folder: /somewhere/checkout/runs, before /somewhere/else; opensesame")
    assert told == f"run folder: /somewhere/checkout/runs, before /somewhere/else; {MASK}"


def test_the_shown_config_and_errors(capsys: pytest.CaptureFixture[str]) -> None:
    from src.train import COMMAND

    uri = f"https://me:{PLANTED}@mlflow.example"
    assert cli.run(COMMAND, ["--cfg", "job", f"logger.tracking_uri={uri}", f"+model.api_key={PLANTED}"]) == 2
    assert cli.run(COMMAND, [f"+model.api_key={PLANTED}"]) == 2
    short = ["experiment=bicot_lora", "trainer.max_steps=1"]
    assert cli.run(COMMAND, [*short, f"logger.tracking_uri=ftp://me:{PLANTED}@h"]) == 2
    assert cli.run(COMMAND, ["--cfg", "job", f"logger.tracking_uri={uri}", f"data.columns.token={PLANTED}"]) == 2
    assert cli.run(COMMAND, ["--cfg", "job", f"logger.tracking_uri={uri}", f"+data.columns.token={PLANTED}"]) == 0
    said = capsys.readouterr()
    assert PLANTED not in said.out + said.err
    assert OmegaConf.create(said.out).logger.tracking_uri == f"https://{MASK}@mlflow.example"
    assert MASK in said.err


def test_an_unexpected_error_shows_no_secret(tmp_path: Path) -> None:
    program = (
        "from src.cli import command as cli\nfrom src.train import COMMAND\nfrom dataclasses import replace\n"
        "def fail(config): raise RuntimeError('cannot reach ' + config.logger.tracking_uri)\n"
        f"cli.run(replace(COMMAND, task=fail), ['logger.tracking_uri=https://me:{PLANTED}@h'])\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert f"RuntimeError: cannot reach https://{MASK}@h" in done.stderr
    assert PLANTED not in done.stdout + done.stderr


def test_a_masked_config_builds_nothing() -> None:
    config = compose([f"+rewards.experts.shapes.api_key='{MASK}'"])
    with pytest.raises(UserError, match=re.escape(f"rewards.experts.shapes.api_key={MASK}")):
        build.build_rewards(config)


def test_a_journal_knows_its_store_without_the_password(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uri, other = f"https://me:{PLANTED}@h:5000", f"postgresql://u:{PLANTED}@db/x"
    journal = Journal(masked_text(uri), "e", "n").with_run(uri, "1", False).with_run(other, "2", False)
    assert (journal.run_in(uri), journal.run_in(other), journal.run_in("https://h:5000")) == ("1", "2", None)
    assert PLANTED not in repr(journal)
    assert noted_uri(None, tmp_path) is None
    with pytest.raises(UserError, match="keeps no password"):
        noted_uri(journal.tracking_uri, tmp_path)
    with pytest.raises(UserError, match="names 5"):
        noted_uri(5, tmp_path)  # type: ignore[arg-type]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    assert noted_uri(journal.tracking_uri, tmp_path) == uri


@pytest.mark.parametrize("wrong", [[], {"tracking_uri": 5}, {"uploaded": []}, {"more": 1}, None])
def test_a_journal_of_something_else_is_refused(tmp_path: Path, wrong: Any) -> None:
    fine = {"tracking_uri": f"https://me:{PLANTED}@h", "experiment": "e", "name": "n", "run_id": "1"}
    folder = RunFolder(tmp_path)
    folder.mlflow.write_text(json.dumps(fine))
    # One from before passwords were masked.
    known = read_journal(folder)
    assert known is not None
    assert known.run_in(f"https://me:{PLANTED}@h") == "1"
    assert PLANTED not in repr(known)
    folder.mlflow.write_text(json.dumps(wrong if not isinstance(wrong, dict) else fine | wrong))
    with pytest.raises(UserError, match=r"mlflow\.json: cannot be read as a run's mlflow\.json \(.*\); delete it"):
        read_journal(folder)


def _holding(folder: Path, secret: str) -> list[Path]:
    """The files below `folder` that hold `secret`; databases and pickles, too, read as bytes."""
    return [file for file in folder.rglob("*") if file.is_file() and secret.encode() in file.read_bytes()]


@pytest.mark.slow
def test_a_run_writes_no_secret_and_resumes(tmp_path: Path) -> None:
    """Secrets planted in the config, the environment and a URL; everything that a run leaves is searched."""
    world, run, root = write_world(tmp_path / "world"), tmp_path / "runs" / "run", tmp_path / "runs"
    planted: dict[str, Any] = {
        "+rewards.experts.red.api_key": f"{PLANTED}-config",
        "+rewards.experts.red.endpoint": f"'https://user:{PLANTED}-url@example.org?token={PLANTED}-query'",
        "+rewards.experts.red.from_environment": "'${oc.env:JUDGE_PASSWORD}'",
        "+rewards.experts.red._target_": "tests.training.experts.Keyed",
        "logger": "mlflow",
        "logger.system_metrics_every": "null",
        "run.root": root,
    }
    words = {key.replace(".", "__"): value for key, value in planted.items()}

    def trained(*more: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "src.train", *overrides(world, run, **words), *more]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, env=environment)

    environment = {**os.environ, "JUDGE_PASSWORD": f"{PLANTED}-environment"}
    first = trained("trainer.max_steps=2")
    assert first.returncode == 0, first.stderr
    again = trained("trainer.max_steps=4", f"resume={run}")
    assert again.returncode == 0, again.stderr
    # Another secret is no other setting; another setting still is.
    other = trained("trainer.max_steps=5", f"resume={run}", f"rewards.experts.red.api_key={PLANTED}-rotated")
    assert other.returncode == 0, other.stderr
    changed = trained("trainer.max_steps=6", f"resume={run}", "algorithm.beta=0.5")
    assert changed.returncode == 2
    assert "algorithm.beta=0.5" in changed.stderr
    bad = trained("rewards.experts.red._target_=tests.training.experts.Red", f"run.dir={root / 'bad'}")
    assert bad.returncode == 2
    assert "api_key" in bad.stderr
    for done in (first, again, other, changed, bad):
        assert PLANTED not in done.stdout + done.stderr
    assert (root / "mlflow.db").is_file()
    assert _holding(root, PLANTED) == []
    # The search finds what is there.
    assert RunFolder(run).config in _holding(root, MASK)
    made = OmegaConf.load(RunFolder(run).config).rewards.experts.red
    assert (made.api_key, made.from_environment) == (MASK, MASK)
    assert made.endpoint == f"https://{MASK}@example.org?token={MASK}"
