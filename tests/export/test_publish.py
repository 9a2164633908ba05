"""Publishing: what is asked of the hub's client, that no token is shown, and MLflow's registry for real."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar

import huggingface_hub
import pytest

from src.cli import command as cli
from src.export.command import COMMAND
from src.policies.export import ADAPTER_FILES
from tests.tiny_run import lora_run

TOKEN = "hf_secretsecretsecret"


class Hub:
    """Stands in for `huggingface_hub.HfApi`: notes what it is asked."""

    calls: ClassVar[list[tuple[str, Any]]] = []
    fails: ClassVar[bool] = False

    def __init__(self, token: str) -> None:
        assert token == TOKEN

    def create_repo(self, repo_id: str, *, private: bool, exist_ok: bool) -> str:
        self.calls.append(("create", (repo_id, private, exist_ok)))
        return f"https://hub.example/{repo_id}"

    def upload_folder(self, *, repo_id: str, folder_path: Path, commit_message: str) -> None:
        if self.fails:
            raise OSError(f"401 for Bearer {TOKEN}")
        self.calls.append(("upload", (repo_id, sorted(path.name for path in Path(folder_path).iterdir()))))


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> type[Hub]:
    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: TOKEN)
    monkeypatch.setattr(Hub, "calls", [])
    return Hub


def export(*arguments: str) -> int:
    return cli.run(COMMAND, [f"run={lora_run().path}", *arguments])


def test_what_is_pushed(tmp_path: Path, hub: type[Hub], capsys: pytest.CaptureFixture[str]) -> None:
    named = ("push_to_hub=true", "repo=me/lora", "base_repository=me/base")
    assert export(f"out={tmp_path / 'out'}", *named) == 0
    (create, upload) = hub.calls
    assert create == ("create", ("me/lora", True, True))
    assert upload[1][0] == "me/lora"
    assert {"README.md", *ADAPTER_FILES} <= set(upload[1][1])
    page = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "me/base"
    assert "from_pretrained(base, 'me/lora')" in page
    shown = capsys.readouterr()
    for text in (page, json.dumps(config)):
        assert str(tmp_path) not in text
        assert str(lora_run().path.parent) not in text
        assert "src/shapes" not in text, "no place of this machine"
    assert TOKEN not in shown.out + shown.err + page
    assert "pushed: https://hub.example/me/lora" in shown.out
    assert export(f"out={tmp_path / 'open'}", *named, "private=false") == 0
    assert hub.calls[2] == ("create", ("me/lora", False, True))


def test_a_refusal_shows_no_token_and_the_export_stays(
    tmp_path: Path, hub: type[Hub], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(hub, "fails", True)
    assert export(f"out={tmp_path / 'out'}", "push_to_hub=true", "repo=me/lora", "base_repository=me/base") == 2
    told = capsys.readouterr().err
    assert "Bearer (token)" in told
    assert TOKEN not in told
    assert (tmp_path / "out" / "adapter_model.safetensors").is_file()


def test_no_token_and_a_base_nobody_has(
    tmp_path: Path, hub: type[Hub], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = (f"out={tmp_path / 'out'}", "push_to_hub=true", "repo=me/lora")
    assert export(*asked) == 2
    assert "the adapter's base" in capsys.readouterr().err
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    assert export(*asked) == 2
    assert "hf auth login" in capsys.readouterr().err
    assert hub.calls == []
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_versions_in_a_real_registry(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from mlflow.tracking import MlflowClient

    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    asked = ("register=true", "registered_name=shapes", f"tracking_uri={uri}", "overwrite=true")
    for version in (1, 2):
        assert export(f"out={tmp_path / 'out'}", *asked) == 0
        assert f"registered: shapes, version {version}" in capsys.readouterr().out
    client = MlflowClient(uri, registry_uri=uri)
    found = client.search_model_versions("name = 'shapes'")
    assert sorted(int(version.version) for version in found) == [1, 2]
    for version in found:
        assert version.source == f"{client.get_run(version.run_id).info.artifact_uri}/exported/out"
        there = {file.path for file in client.list_artifacts(version.run_id, "exported/out")}
        assert {f"exported/out/{name}" for name in ("README.md", *ADAPTER_FILES)} <= there
    copied = client.download_artifacts(found[0].run_id, "exported/out/adapter_model.safetensors", str(tmp_path))
    assert Path(copied).read_bytes() == (tmp_path / "out" / "adapter_model.safetensors").read_bytes()
