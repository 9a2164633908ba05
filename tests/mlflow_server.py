"""MLflow's own server, to be started and killed at will."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class MLflowServer:
    """A server on the SQLite file `database`, always at the same port."""

    def __init__(self, database: Path) -> None:
        self.database = database
        with socket.socket() as listening:
            listening.bind(("127.0.0.1", 0))
            self.port = int(listening.getsockname()[1])
        self.url = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> str:
        """Start it and wait until it answers; returns its address."""
        with (self.database.parent / "server.log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", f"sqlite:///{self.database}",
                 "--artifacts-destination", str(self.database.parent / "served"),
                 "--host", "127.0.0.1", "--port", str(self.port), "--workers", "1"],
                cwd=self.database.parent, stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
        until = time.monotonic() + 120
        while True:
            try:
                with urllib.request.urlopen(f"{self.url}/health", timeout=2):  # noqa: S310
                    return self.url
            except OSError as error:
                if self.process.poll() is not None or time.monotonic() > until:
                    raise RuntimeError((self.database.parent / "server.log").read_text()) from error
                time.sleep(0.3)

    def kill(self) -> None:
        """End it and its workers without a word."""
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None


@contextmanager
def mlflow_server(root: Path) -> Iterator[str]:
    """The address of a server of ``<root>/mlflow.db``; it ends with the block."""
    server = MLflowServer(root / "mlflow.db")
    try:
        yield server.start()
    finally:
        server.kill()
