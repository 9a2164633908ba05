"""Stores that cannot be used are named before anything is loaded."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from src.config.errors import UserError
from src.loggers.store import Store, locate_store


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MLFLOW_TRACKING_URI", "HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy"):
        monkeypatch.delenv(name, raising=False)


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])


def test_the_default_is_a_database_in_the_runs_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    store = locate_store(None, Path("runs"))
    assert store.uri == f"sqlite:///{tmp_path}/runs/mlflow.db"
    assert store.artifacts == tmp_path / "runs/mlartifacts"


def test_the_environment_names_a_store_and_the_config_comes_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/a.db")
    assert locate_store(None, tmp_path / "runs").uri == f"sqlite:///{tmp_path}/a.db"
    assert locate_store(f"sqlite:///{tmp_path}/b.db", tmp_path / "runs").uri == f"sqlite:///{tmp_path}/b.db"


def test_a_relative_database_is_made_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert locate_store("sqlite:///here.db", tmp_path).uri == f"sqlite:///{tmp_path}/here.db"


def test_a_listening_server_is_taken(tmp_path: Path) -> None:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        uri = f"http://127.0.0.1:{listening.getsockname()[1]}"
        assert locate_store(uri, tmp_path) == Store(uri, None)


@pytest.mark.parametrize("host", ["127.0.0.1:{port}", "no-such-host.invalid:5000"])
def test_a_server_that_does_not_answer_is_no_error_but_known(tmp_path: Path, host: str) -> None:
    uri = f"http://{host.format(port=free_port())}"
    store = locate_store(uri, tmp_path)
    assert store.uri == uri
    assert store.unreachable


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("http://127.0.0.1:99999", "expected http(s)://HOST:PORT"),
        ("{tmp}/mlruns", "no longer keeps runs in plain folders"),
        ("file://{tmp}/mlruns", "no longer keeps runs in plain folders"),
        ("sqlite://", "expected sqlite:///PATH.db"),
        ("sqlite:///{tmp}/text.db", "is not an SQLite database"),
        ("sqlite:///{tmp}/text.db/below.db", "cannot be written"),
    ],
)
def test_a_wrong_store_is_named(tmp_path: Path, uri: str, message: str) -> None:
    (tmp_path / "text.db").write_text("this is a text, not a database")
    uri = uri.format(tmp=tmp_path)
    with pytest.raises(UserError) as caught:
        locate_store(uri, tmp_path)
    assert f"logger.tracking_uri={uri}" in str(caught.value)
    assert message in str(caught.value)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0o500)
    with pytest.raises(UserError, match="cannot be written"):
        locate_store(f"sqlite:///{tmp_path}/locked/a.db", tmp_path)
