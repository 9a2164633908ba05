"""Somebody else's run folder, given to every command: nothing is sent, nothing is looked up, nothing hangs."""

from __future__ import annotations

import json
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from src.cli import command as cli
from src.export.command import refuse_links
from src.train import COMMAND as TRAIN
from src.trained import Source
from tests.conftest import ROOT
from tests.runs.test_config import aliases
from tests.tiny_run import SHORT, lora_run

SECRET, TOKEN = "the-cloud-key-of-this-user", "reward-token-of-this-user"


class Listener:
    """Takes every connection on a port of 127.0.0.1, and keeps what it is sent."""

    def __init__(self) -> None:
        self.received: list[bytes] = []
        self._server = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._server.getsockname()[1]}"
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._server.accept()
            except OSError:
                return
            with connection:
                connection.settimeout(0.2)
                data = b""
                try:
                    while part := connection.recv(65536):
                        data += part
                except OSError:
                    pass
                self.received.append(data)

    def close(self) -> None:
        self._server.close()


@pytest.fixture
def listener(monkeypatch: pytest.MonkeyPatch) -> Iterator[Listener]:
    """Something that wants to be sent what this user keeps to himself."""
    for name in ("MLFLOW_TRACKING_URI", "http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("BICOT_REWARDS_TOKEN", TOKEN)
    listener = Listener()
    yield listener
    listener.close()


@pytest.fixture
def hostile(tmp_path: Path) -> Callable[..., Path]:
    """Makes a run folder of a real one: its config changed under dotted keys, `more` added to the text of it."""

    def made(changes: dict[str, Any] | None = None, more: str = "") -> Path:
        folder = tmp_path / "theirs" / "run-20260101-120000"
        shutil.copytree(lora_run().path, folder)
        config: Any = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
        for key, value in (changes or {}).items():
            *sections, last = key.split(".")
            node = config
            for section in sections:
                node = node[section]
            node[last] = value
        (folder / "config.yaml").write_text(yaml.safe_dump(config) + more, encoding="utf-8")
        return folder

    return made


def run(command: str, folder: Path, monkeypatch: pytest.MonkeyPatch, *more: str) -> int:
    """`command` on the run in `folder`, in this process."""
    out = f"out={folder.parent.parent / 'out'}"
    asked: dict[str, tuple[str, ...]] = {
        "generate": ("prompts=a red circle", f"run={folder}", "n=1", out),
        "evaluate": (f"run={folder}", "n=1", "max_prompts=1", out),
        "demo": (f"run={folder}",),
        "benchmark_images": (f"run={folder}", "name=geneval", "prompts=nowhere", out),
        "compare": (f"runs={folder.parent}", out),
        "upload_metrics": (f"run={folder}",),
        "export": (f"run={folder}", out),
        "train": (
            *SHORT,
            "logger=csv",
            f"run.root={folder.parent}",
            "trainer.max_steps=4",
            "optim.lr=1e-2",
            f"resume={folder}",
        ),
    }
    arguments = [*asked[command], *more]
    if command in ("generate", "evaluate"):
        module = __import__(f"src.{command}.command", fromlist=["main"])
        monkeypatch.setattr("sys.argv", [command, *arguments])
        return int(module.main())
    if command == "demo":
        pytest.importorskip("gradio")
        from src.demo.__main__ import COMMAND, prepared

        return cli.run(replace(COMMAND, task=lambda config: bool(prepared(config)) - 1), arguments)
    if command == "train":
        merged = {item.partition("=")[0]: item for item in arguments}
        return cli.run(TRAIN, list(merged.values()))
    return cli.run(__import__(f"src.{command}.command", fromlist=["COMMAND"]).COMMAND, arguments)


COMMANDS = ("generate", "evaluate", "demo", "benchmark_images", "compare", "upload_metrics", "export", "train")
CHAIN = (
    "\nchain: {a0: xx, " + ", ".join(f"a{i}: '${{chain.a{i - 1}}}${{chain.a{i - 1}}}'" for i in range(1, 60)) + "}\n"
)
# What no command may take for data: changes of a run's config, what is added to its text, what the message names.
NO_DATA: dict[str, tuple[dict[str, Any], str, str]] = {
    "a_variable_in_an_address": (
        {"rewards.remote.url": "URL/${oc.env:AWS_SECRET_ACCESS_KEY}"},
        "",
        "rewards.remote.url",
    ),
    "a_variable_in_a_path": ({"model.path": "${oc.env:AWS_SECRET_ACCESS_KEY}"}, "", "model.path"),
    "a_variable_in_a_name": ({"run.name": "${oc.env:AWS_SECRET_ACCESS_KEY}"}, "", "run.name"),
    "a_missing_variable": ({"run.name": "${oc.env:NOT_SET_ANYWHERE}"}, "", "run.name"),
    "an_unknown_resolver": ({"run.name": "${nobody:1}"}, "", "run.name"),
    "a_loop": ({"run.name": "${run.name}"}, "", "run.name"),
    "a_chain": ({}, CHAIN, "chain.a1"),
    "an_alias_bomb": ({}, "\n" + aliases(12, 9), "&a0"),
    "a_cut_file": ({}, "\nx: 'y", "not valid YAML"),
}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("kind", NO_DATA)
def test_no_command_looks_anything_up_for_a_run_folder(
    command: str,
    kind: str,
    hostile: Callable[..., Path],
    listener: Listener,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    changes, more, told = NO_DATA[kind]
    folder = hostile({key: value.replace("URL", listener.url) for key, value in changes.items()}, more)
    (folder / "mlflow.json").unlink(missing_ok=True)
    start = time.perf_counter()
    assert run(command, folder, monkeypatch) == cli.EXIT_WRONG_INPUT
    assert time.perf_counter() - start < 30  # loaded machines; a bomb would go on for hours
    said = "".join(capsys.readouterr())
    assert f"{folder / 'config.yaml'}:" in said
    assert told in said
    assert SECRET not in said
    assert listener.received == []
    assert not (folder.parent.parent / "out").exists()


def test_a_run_folder_does_not_choose_who_scores(
    hostile: Callable[..., Path],
    listener: Listener,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    """The same address, named by the user, is asked, with the user's token, not with the folder's file."""
    secret = tmp_path / "id_rsa"
    secret.write_text("private-key-of-this-user", encoding="utf-8")
    folder = hostile({"rewards.remote.url": listener.url, "rewards.remote.token_file": str(secret)})
    assert run("evaluate", folder, monkeypatch) == cli.EXIT_WRONG_INPUT
    assert f"give remote.url={listener.url}" in capsys.readouterr().err
    assert listener.received == []
    named = (f"remote.url={listener.url}", "remote.retries=0")
    assert run("evaluate", folder, monkeypatch, *named) == cli.EXIT_WRONG_INPUT  # it is no server of rewards
    assert [TOKEN.encode() in data for data in listener.received] == [True]
    assert not any(b"private-key" in data for data in listener.received)


def test_other_experts_may_be_asked_for_instead(
    hostile: Callable[..., Path], listener: Listener, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = hostile({"rewards.remote.url": listener.url})
    assert run("evaluate", folder, monkeypatch, "rewards=shapes") == 0
    assert listener.received == []
    assert (tmp_path / "out" / "summary.json").is_file()


@pytest.mark.parametrize("command", ["generate", "export", "compare", "train"])
def test_commands_that_score_otherwise_ask_nobody(
    command: str, hostile: Callable[..., Path], listener: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And leave an address in a config alone: a user's own run with served experts works as ever."""
    changes = {"rewards.remote.url": listener.url, "rewards.remote.token_file": "/etc/passwd"}
    folder = hostile({**changes, "logger.tracking_uri": listener.url})
    assert run(command, folder, monkeypatch) == 0
    assert listener.received == []


@pytest.mark.parametrize("variable", ["MLFLOW_TRACKING_TOKEN", "NOTHING_OF_THE_KIND"])
@pytest.mark.parametrize("command", ["upload_metrics", "export"])
def test_a_run_folder_does_not_choose_the_tracker(
    command: str,
    variable: str,
    hostile: Callable[..., Path],
    listener: Listener,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv(variable, "token-of-mlflow-of-this-user")
    folder = hostile()
    journal = {"tracking_uri": listener.url, "experiment": "x", "name": "x", "run_id": "1"}
    (folder / "mlflow.json").write_text(json.dumps(journal), encoding="utf-8")
    more = ["register=true"] if command == "export" else []
    assert run(command, folder, monkeypatch, *more) == cli.EXIT_WRONG_INPUT
    assert f"give tracking_uri={listener.url}" in capsys.readouterr().err
    assert listener.received == []


def test_a_run_folder_does_not_choose_a_data_set(
    hostile: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It may lie anywhere, and may itself name addresses; the user may ask for it by name."""
    asked: list[str] = []
    monkeypatch.setattr("src.data.module.read_dataset", lambda name, *_: asked.append(name) or [])
    folder = hostile({"data.path": None, "data.dataset": "collector/prompts"})
    assert run("evaluate", folder, monkeypatch) == cli.EXIT_WRONG_INPUT
    assert "give data=shapes data.path=null data.dataset=collector/prompts" in capsys.readouterr().err
    assert asked == []
    run("evaluate", folder, monkeypatch, "data=shapes", "data.path=null", "data.dataset=collector/prompts")
    assert asked == ["collector/prompts"]


@pytest.mark.parametrize("where", ["adapter", "base"])
def test_an_export_that_is_sent_takes_no_other_file_along(
    where: str,
    hostile: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    """Neither of what the run trained, nor of the base it names."""
    base, secret = tmp_path / "theirs" / "base", tmp_path / "id_rsa"
    shutil.copytree(ROOT / "src/shapes/checkpoint", base)
    secret.write_text("private", encoding="utf-8")
    folder = hostile({"model.path": str(base)})
    ((folder / "adapter") if where == "adapter" else base).joinpath("notes.txt").symlink_to(secret)
    monkeypatch.setenv("HF_TOKEN", "hf_of_this_user_alone")
    sent: list[Path] = []
    monkeypatch.setattr("src.export.command.push", lambda out, *_: sent.append(out) or "")
    assert run("export", folder, monkeypatch, "merge=true", "push_to_hub=true", "repo=me/x") == cli.EXIT_WRONG_INPUT
    assert f"{'adapter' if where == 'adapter' else 'base'}/notes.txt: is a link out of" in capsys.readouterr().err
    assert sent == []


def test_a_base_in_the_hubs_cache_is_sent(tmp_path: Path) -> None:
    """All its files are links there."""
    snapshot, blobs = (tmp_path / "models--me--x" / part for part in ("snapshots/1", "blobs"))
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    (blobs / "abc").touch()
    (snapshot / "tokenizer.json").symlink_to("../../blobs/abc")
    refuse_links(Source(snapshot, None), whole=True)
    (snapshot / "model.safetensors").symlink_to(tmp_path)  # weights are not copied
    refuse_links(Source(snapshot, None), whole=True)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_runs_config_is_no_other_file_of_this_machine(
    command: str,
    hostile: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    folder = hostile()
    (folder / "mlflow.json").unlink(missing_ok=True)
    (folder / "config.yaml").replace(tmp_path / "private.yaml")
    (folder / "config.yaml").symlink_to(tmp_path / "private.yaml")
    assert run(command, folder, monkeypatch) == cli.EXIT_WRONG_INPUT
    assert "link out of the run's folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"rollout.guidance_scale": "x"}, "guidance_scale"),
        ({"rollout.plan": 3}, "rollout"),
        ({"rollout.image": {"temperature": -1}}, "rollout.image.temperature"),
        ({"rollout.max_plan_tokens": 0}, "rollout.max_plan_tokens"),
    ],
)
@pytest.mark.parametrize("command", ["generate", "evaluate", "benchmark_images"])
def test_settings_of_a_run_are_checked_as_a_users_are(
    command: str,
    changes: dict[str, Any],
    told: str,
    hostile: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(command, hostile(changes), monkeypatch) == cli.EXIT_WRONG_INPUT
    said = capsys.readouterr().err
    assert "config.yaml" in said
    assert told in said


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"evaluation.seed": "x"}, "evaluation.seed"),
        ({"run.seed": -1}, "run.seed"),
        ({"rewards.combine": [1]}, "rewards"),
        ({"rewards.unheard_of": 1}, "rewards"),
        ({"rewards": {"experts": 3}}, "rewards"),
    ],
)
def test_what_evaluate_takes_from_a_run_is_checked(
    changes: dict[str, Any],
    told: str,
    hostile: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run("evaluate", hostile(changes), monkeypatch) == cli.EXIT_WRONG_INPUT
    assert told in capsys.readouterr().err
