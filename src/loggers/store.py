"""Where MLflow keeps a run, checked as far as that goes without importing MLflow."""

from __future__ import annotations

import os
import re
import socket
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from src.config.errors import UserError
from src.config.masking import MASK, masked_text

DATABASES = ("sqlite", "postgresql", "mysql", "mssql")
REACH_SECONDS = 5.0
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
        UserError: for a URI MLflow cannot use, a file that is not a database, a folder that cannot be written.
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


def noted_uri(uri: str | None, root: Path) -> str | None:
    """The tracking URI from a run folder below `root`, if the user would get the same one without it.

    A run folder may come from someone else: it records where it was logged, but cannot choose where data is sent. So
    only MLFLOW_TRACKING_URI and the stores of `locate_store` without one (``mlflow.db`` in `root` or in runs/) count.
    A folder also keeps no passwords; those come from the environment.

    Raises:
        UserError: for any other URI, which the user has to confirm.
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
    own = {(place / "mlflow.db").expanduser().resolve() for place in (root, Path("runs"))}
    try:
        if uri.startswith("sqlite:///") and _file_of(uri).resolve() in own:
            return uri
    except (OSError, ValueError):  # a name that no file can have
        pass
    raise UserError(
        f"tracking_uri: the run's folder names {uri}, and a run folder cannot choose where its figures and your"
        f" MLflow credentials are sent; give tracking_uri={uri} to confirm, or set MLFLOW_TRACKING_URI"
    )


def named(tracking_uri: str | None) -> bool:
    """Whether the user names a store, on the command line or in the environment."""
    return bool(tracking_uri or os.environ.get("MLFLOW_TRACKING_URI"))


def check_artifacts(place: str, uri: str, user_named: bool) -> None:
    """Refuse artifacts outside this machine (`place`) for a store `uri` found next to a run, not named by the user.

    user_named: as `named` says. Such a database says by itself where its artifacts are; MLflow sends the
    environment's credentials there.

    Raises:
        UserError: naming the place and the setting that confirms it.
    """
    own = f"sqlite:///{Path('runs').resolve() / 'mlflow.db'}"
    if user_named or uri == own or not uri.startswith("sqlite") or urlsplit(place).scheme in ("", "file"):
        return
    raise UserError(
        f"tracking_uri: {uri} lies beside the run, and keeps its artifacts at {place}; give tracking_uri={uri} if they"
        " may be sent there"
    )


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
                raise UserError(f"{key}={uri}: {file} is not an SQLite database; choose another file")
        elif not os.access(file.parent, os.W_OK):
            raise PermissionError(13, "permission denied", str(file.parent))
    except FileNotFoundError as error:
        raise UserError(f"{key}={uri}: no such file; give {key}=sqlite:///PATH.db of an existing store") from error
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
