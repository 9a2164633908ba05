"""Names that stand in files (or in somebody else's run folder) lead nowhere they should not."""

from __future__ import annotations

import json
import re
import sqlite3
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from safetensors.torch import save_file
from torch import zeros

from src.cli.compose import compose
from src.config.errors import UserError
from src.evaluate.contestants import Contestant
from src.export.model_card import CardFacts, complete_card
from src.loggers.store import check_artifacts, noted_uri
from src.policies.adapter_files import check_adapter_directory
from src.policies.weight_files import CheckpointError, could_be_path, weight_files
from src.runs.folder import RunFolder, leads_out, newest_unfinished
from src.runs.sound_files import damage
from src.trained import locate_source
from src.upload_metrics.command import upload_files

ODD = ["../../x", "..", "/etc/passwd", "a/b", "a\0b", "x" * 5000, ".", "", "x/" * 3000]


@pytest.mark.parametrize("name", ODD)
def test_a_shard_lies_beside_its_index(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "deep" / "checkpoint"
    folder.mkdir(parents=True)
    save_file({"w": zeros(1)}, tmp_path / "x")
    (folder / "a").mkdir()
    save_file({"w": zeros(1)}, folder / "a" / "b")
    index = {"weight_map": {"w": name}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r"model\.safetensors\.index\.json"):
        weight_files(folder)


@pytest.mark.parametrize("name", [*ODD[3:], "\ud800", 3, ["x"], {"a": 1}])
def test_a_base_that_is_no_path_is_told_as_such(tmp_path: Path, name: Any) -> None:
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    save_file({"w": zeros(1)}, adapter / "adapter_model.safetensors")
    (adapter / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "base_model_name_or_path": name}))
    if name in ("", "."):  # this very folder; it has no checkpoint in it
        return
    with pytest.raises(UserError, match="adapter"):
        locate_source(None, str(adapter), None)


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"peft_type": "PROMPT_TUNING", "tokenizer_kwargs": {"trust_remote_code": True}}, "PROMPT_TUNING"),
        ({"peft_type": "LORA", "megatron_config": {"x": 1}, "megatron_core": "antigravity"}, "megatron_config"),
        ({"peft_type": "LORA", "init_lora_weights": "corda", "corda_config": {"cache_file": "/x"}}, "corda"),
        ({"peft_type": "LORA", "init_lora_weights": ["eva"]}, "init_lora_weights"),
        ([], "peft_type"),
        (None, "peft_type"),
    ],
)
def test_an_adapters_config_makes_peft_import_nothing(tmp_path: Path, settings: Any, problem: str) -> None:
    (tmp_path / "adapter_model.safetensors").touch()
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings))
    with pytest.raises(ValueError, match=problem):
        check_adapter_directory(tmp_path)
    (tmp_path / "adapter_config.json").write_text("[" * 100_000)
    with pytest.raises(ValueError, match="damaged"):
        check_adapter_directory(tmp_path)
    for fine in (True, False, "gaussian", None):
        config = {"peft_type": "LORA", "init_lora_weights": fine, "megatron_config": None}
        (tmp_path / "adapter_config.json").write_text(json.dumps(config))
        check_adapter_directory(tmp_path)


@pytest.mark.parametrize("name", ["../../x", "..", "/tmp/x", "a/b", "a\\b", "x" * 201, ".", "ä" * 101])  # noqa: S108
def test_a_runs_name_is_the_name_of_a_folder(name: str) -> None:
    with pytest.raises(UserError, match=r"run\.name"):
        compose([f"run.name='{name}'"])


def test_only_folders_right_below_the_root_are_resumed(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "x-20260101-120000")
    run.last_checkpoint.parent.mkdir(parents=True)
    run.last_checkpoint.touch()
    root = tmp_path / "root"
    root.mkdir()
    assert newest_unfinished(tmp_path, "x") == run
    assert newest_unfinished(root, "../x") is None
    assert newest_unfinished(root, ".*") is None


@pytest.mark.parametrize("name", [*ODD, "...", ".hidden", "a:b", "ä b"])
def test_a_models_name_is_one_folder(tmp_path: Path, name: str) -> None:
    if not name:
        return
    folder = tmp_path / "out" / Contestant(name).folder_name
    folder.mkdir(parents=True)
    assert folder.resolve().parent == (tmp_path / "out").resolve()


@pytest.mark.parametrize("name", ODD)
def test_a_checksum_file_names_no_other_file(tmp_path: Path, name: str) -> None:
    """Its digest counts, whatever file it says that is of."""
    file, other = tmp_path / "last.ckpt", tmp_path / "other"
    file.write_bytes(b"content")
    other.write_bytes(b"other")
    import hashlib

    digest = hashlib.sha256(b"content").hexdigest()
    (tmp_path / "last.ckpt.sha256").write_text(f"{digest}  {name}\n", encoding="ascii")
    assert damage(file) is None
    (tmp_path / "last.ckpt.sha256").write_text(f"{hashlib.sha256(b'other').hexdigest()}  {other}\n", encoding="ascii")
    assert damage(file) is not None


def test_links_out_of_a_run_folder_are_seen(tmp_path: Path) -> None:
    run, secret = tmp_path / "run", tmp_path / "secret"
    (run / "adapter" / "deep").mkdir(parents=True)
    secret.write_text("private")
    (run / "inside").write_text("fine")
    (run / "adapter" / "link").symlink_to(run / "inside")
    assert leads_out(run, run / "adapter") is None
    (run / "adapter" / "deep" / "link").symlink_to(secret)
    assert leads_out(run, run / "adapter") == run / "adapter" / "deep" / "link"
    (run / "summary.json").symlink_to("../secret")
    assert leads_out(run, run / "summary.json") == run / "summary.json"
    # A run folder that is itself reached by a link is all its own.
    (tmp_path / "linked").symlink_to(run)
    assert leads_out(tmp_path / "linked", tmp_path / "linked" / "inside") is None


@pytest.mark.parametrize("file", ["summary.json", "samples_after.png", "adapter", "samples/step_000001.png"])
def test_no_other_file_of_the_machine_is_uploaded(tmp_path: Path, file: str) -> None:
    run, secret = tmp_path / "run", tmp_path / "secret"
    secret.mkdir()
    (run / file).parent.mkdir(parents=True, exist_ok=True)
    (run / file).symlink_to(secret)
    sent: list[str] = []
    client = SimpleNamespace(list_artifacts=lambda run_id: [], log_artifact=sent.append, log_artifacts=sent.append)
    with pytest.raises(UserError, match="link out of the run's folder"):
        upload_files(SimpleNamespace(client=client, run_id="1", fill_image=sent.append), RunFolder(run))  # type: ignore[arg-type]
    assert sent == []


def test_a_model_card_takes_no_other_file_along(tmp_path: Path) -> None:
    run, out, secret = tmp_path / "run", tmp_path / "out", tmp_path / "id_rsa"
    run.mkdir()
    out.mkdir()
    secret.write_text("private")
    (out / "README.md").write_text("How to load it.\n")
    (run / "samples_before.png").symlink_to(secret)
    (run / "samples_after.png").write_bytes(b"a picture")
    complete_card(out, CardFacts("x", None, tmp_path, "peft", None, run, None, None))
    assert {path.name for path in out.iterdir()} == {"README.md", "samples_after.png"}


def test_a_run_folder_chooses_no_database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a new one, nor one that is another program's, nor a store of MLflow but the one beside it."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    new, other, store = (tmp_path / name for name in ("deep/new.db", "cookies.db", "root/mlflow.db"))
    store.parent.mkdir()
    for file in (other, store):
        sqlite3.connect(file).execute("CREATE TABLE experiments (x)")
    before = other.read_bytes()
    for file in (new, other, store.with_name("second.db"), tmp_path, Path("a\0b"), Path("x" * 5000)):
        with pytest.raises(UserError, match="give tracking_uri=sqlite:///"):
            noted_uri(f"sqlite:///{file}", store.parent)
    assert noted_uri(f"sqlite:///{store}", store.parent) == f"sqlite:///{store}"
    assert noted_uri(f"sqlite:///{tmp_path / 'runs/mlflow.db'}", store.parent) is not None
    assert (new.parent.exists(), other.read_bytes()) == (False, before)


@pytest.mark.parametrize(
    "noted", ["https://collector.example:5000", "databricks://x", "postgresql://x/y", "mlflow://x"]
)
def test_a_run_folder_does_not_choose_who_gets_the_token(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, noted: str
) -> None:
    """Nor one of .netrc, which no variable shows."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(UserError, match=f"give tracking_uri={noted} to confirm"):
        noted_uri(noted, tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", noted)
    assert noted_uri(noted, tmp_path) == noted


def test_a_store_that_lay_beside_a_run_does_not_choose_where_artifacts_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    store, place = f"sqlite:///{tmp_path / 'theirs/mlflow.db'}", "mlflow-artifacts://collector.example/x"
    with pytest.raises(UserError, match=re.escape(f"give tracking_uri={store} if")):
        check_artifacts(place, store, False)
    check_artifacts(place, store, True)
    check_artifacts(place, f"sqlite:///{tmp_path / 'runs/mlflow.db'}", False)
    check_artifacts("/tmp/x", store, False)  # noqa: S108
    check_artifacts("file:///tmp/x", store, False)


def test_what_could_be_a_path() -> None:
    assert could_be_path("/a/b c/ä")
    assert not any(map(could_be_path, ["a\0", "x" * 256, "/a" * 2048]))
