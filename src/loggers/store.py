"""Where MLflow keeps a run, checked as far as that goes without importing MLflow."""

from __future__ import annotations

import os
import re
import socket
import sqlite3
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from src.config import UserError
from src.masking import MASK, masked_text

DATABASES = ("sqlite", "postgresql", "mysql", "mssql")
REACH_SECONDS = 5.0
# What MLflow sends to whatever server it talks to.
CREDENTIALS = ("MLFLOW_TRACKING_TOKEN", "MLFLOW_TRACKING_PASSWORD")
_SQLITE_HEADER = b"SQLite format 3\x00"


@dataclass(frozen=True, slots=True)
class Store:
    """uri: MLflow's tracking URI; artifacts: folder for the artifacts of a local store, None where a server has one.

    unreachable: why no server answers there; None where one does, or none is needed.
    """

    uri: str
    artifacts: Path | None
    unreachable: str | None = None


def locate_store(tracking_uri: str | None, root: Path, key: str = "logger.tracking_uri", create: bool = True) -> Store:
    """The store of ``logger.tracking_uri``; without one MLFLOW_TRACKING_URI, else ``<root>/mlflow.db``.

    key: the config key that messages name. create: whether a file that is not there will be made; else it must exist
    and is only looked at.

    Raises:
        UserError: for a URI MLflow cannot use, a database file that is none, a folder that cannot be written.
    """
    uri = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or None
    if uri is None:
        uri = f"sqlite:///{root.expanduser().resolve() / 'mlflow.db'}"
    scheme = urlsplit(uri).scheme
    if scheme in ("http", "https"):
        return Store(uri, None, _problem(uri, key))
    if scheme.partition("+")[0] == "sqlite":
        return _sqlite(uri, key, create)
    if scheme.partition("+")[0] not in (*DATABASES, "databricks") and uri != "databricks":
        raise UserError(
            f"{key}={uri}: expected sqlite:///PATH.db, http(s)://HOST:PORT or another database;"
            " MLflow no longer keeps runs in plain folders"
        )
    return Store(uri, None)


def noted_uri(uri: str | None) -> str | None:
    """A tracking URI out of a run folder, which may be somebody else's; MLFLOW_TRACKING_URI where it is the same.

    A folder keeps no passwords: those come from the environment. Nor does it say where the environment's go, or which
    database becomes a store of MLflow.

    Raises:
        UserError: for a URI that has to be given by the user for one of these reasons.
    """
    given = os.environ.get("MLFLOW_TRACKING_URI", "")
    if uri is None or (given and masked_text(given) == uri):
        return given or None
    if not isinstance(uri, str):
        raise UserError(f"tracking_uri: the run's mlflow.json names {uri!r}; give tracking_uri=URI")
    if MASK in uri:
        raise UserError(
            f"tracking_uri: the run was logged to {uri}, and its folder keeps no password; give tracking_uri=URI, or"
            " set MLFLOW_TRACKING_URI"
        )
    if not uri.startswith("sqlite") and any(os.environ.get(name) for name in CREDENTIALS):
        raise UserError(
            f"tracking_uri: the run's folder names {uri}, and MLflow would send it the environment's"
            f" {' or '.join(CREDENTIALS)}; give tracking_uri={uri} if that is meant"
        )
    if uri.startswith("sqlite") and not _holds_mlflow(_file_of(uri)):
        raise UserError(
            f"tracking_uri: the run's folder names {uri}, which is no MLflow store (any more); give tracking_uri=URI"
        )
    return uri


def _holds_mlflow(file: Path) -> bool:
    """Whether a file is MLflow's own database, looked at without changing it."""
    try:
        with closing(sqlite3.connect(f"{file.resolve().as_uri()}?mode=ro", uri=True)) as database:
            tables = {name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    except (sqlite3.Error, OSError, ValueError):
        return False
    return {"alembic_version", "experiments"} <= tables


def _file_of(uri: str) -> Path:
    return Path(re.sub(r"^sqlite(\+\w+)?:///", "", uri)).expanduser()


def _sqlite(uri: str, key: str, create: bool) -> Store:
    path = re.sub(r"^sqlite(\+\w+)?:///", "", uri)
    if path == uri or not path:
        raise UserError(f"{key}={uri}: expected sqlite:///PATH.db")
    file = Path(path).expanduser().resolve()
    try:
        if create:
            file.parent.mkdir(parents=True, exist_ok=True)
        if file.exists() or not create:
            with file.open("r+b" if create else "rb") as database:
                header = database.read(len(_SQLITE_HEADER))
            if header and header != _SQLITE_HEADER:
                raise UserError(f"{key}={uri}: {file} is no SQLite database; choose another file")
        elif not os.access(file.parent, os.W_OK):
            raise PermissionError(13, "permission denied", str(file.parent))
    except FileNotFoundError as error:
        raise UserError(f"{key}={uri}: no such file; give {key}=sqlite:///PATH.db of a store that exists") from error
    except OSError as error:
        raise UserError(
            f"{key}={uri}: cannot be written ({error.strerror}: {error.filename}); choose another file, or logger=csv"
        ) from error
    return Store(f"sqlite:///{file}", file.parent / "mlartifacts")


def _problem(uri: str, key: str) -> str | None:
    """Why a server does not answer; raises UserError for a URI that names none."""
    parts = urlsplit(uri)
    try:
        port = parts.port or (443 if parts.scheme == "https" else 80)
        if not parts.hostname:
            raise ValueError("no host in it")
    except ValueError as error:
        raise UserError(f"{key}={uri}: {error}; expected http(s)://HOST:PORT") from error
    if any(os.environ.get(name) for name in ("HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy")):
        return None  # reached through a proxy, if at all; MLflow's own first request will tell
    try:
        socket.create_connection((parts.hostname, port), timeout=REACH_SECONDS).close()
    except OSError as error:
        return error.strerror or str(error)
    return None
