"""`nox -s audit` tells a vulnerability from a service that does not answer (a fake pip-audit stands in for both);
the tests that sessions choose by name or by rule are there.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from src.config.schema import ROOT

pytest.importorskip("nox")

FAKE = """
import sys
from pathlib import Path
code, said, report = {code!r}, {said!r}, {report!r}
assert "--format" in sys.argv and "--skip-editable" in sys.argv
print(said, file=sys.stderr)
if report is not None:
    Path(sys.argv[sys.argv.index("--output") + 1]).write_text(report)
sys.exit(code)
"""
SOUND = {"name": "good", "version": "1.0", "vulns": []}
SKIPPED = {"name": "torch", "skip_reason": "Dependency not found on PyPI"}
BAD = {"name": "bad", "version": "0.1", "vulns": [{"id": "PYSEC-1", "fix_versions": ["0.2"]}]}
UNFIXED = {"name": "worse", "version": "3", "vulns": [{"id": "GHSA-x", "fix_versions": []}]}


@pytest.fixture(scope="module")
def noxfile() -> ModuleType:
    spec = importlib.util.spec_from_file_location("project_noxfile", ROOT / "noxfile.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def verdict(noxfile: ModuleType, folder: Path, code: int, said: str = "", packages: list[Any] | None = None) -> Any:
    report = None if packages is None else json.dumps({"dependencies": packages, "fixes": []})
    fake = folder / "fake.py"
    fake.write_text(FAKE.format(code=code, said=said, report=report))
    return noxfile.audited([sys.executable, str(fake)], folder / "audit.json")


def test_nothing_found(noxfile: ModuleType, tmp_path: Path) -> None:
    found = verdict(noxfile, tmp_path, 0, "No known vulnerabilities found", [SOUND, SKIPPED])
    assert found == ("passed", "no known vulnerability in 1 of 2 packages")


def test_a_vulnerability_fails_and_is_named(noxfile: ModuleType, tmp_path: Path) -> None:
    # Even where it also says that something could not be reached.
    found = verdict(noxfile, tmp_path, 1, "Found 2; timed out once", [SOUND, BAD, SKIPPED, UNFIXED])
    assert found.outcome == "failed"
    assert "bad 0.1: PYSEC-1, fixed in 0.2" in found.told
    assert "worse 3: GHSA-x, fixed in no version yet" in found.told
    assert "good" not in found.told


@pytest.mark.parametrize(
    "said",
    [
        "ERROR:pip_audit._cli:Could not connect to PyPI's feed\nERROR: Tip: your network may be blocking",
        "requests.exceptions.ConnectionError: HTTPSConnectionPool(host='x'): Max retries exceeded with url: /",
        "requests.exceptions.ReadTimeout: HTTPSConnectionPool(host='x', port=443): Read timed out. (read timeout=15)",
        "socket.gaierror: [Errno -3] Temporary failure in name resolution",
        "requests.exceptions.ProxyError: Unable to connect to proxy",
        "requests.exceptions.HTTPError: 503 Server Error: Service Unavailable for url",
        "requests.exceptions.HTTPError: 403 Client Error: Forbidden for url",
    ],
)
def test_a_service_that_does_not_answer_blocks_nobody(noxfile: ModuleType, tmp_path: Path, said: str) -> None:
    found = verdict(noxfile, tmp_path, 1, said)
    assert found.outcome == "not made"
    assert said.splitlines()[-1] in found.told


@pytest.mark.parametrize(
    ("code", "said"), [(1, "No module named pip_audit"), (2, "usage: pip-audit"), (0, ""), (-9, "")]
)
def test_an_audit_that_broke_is_no_pass(noxfile: ModuleType, tmp_path: Path, code: int, said: str) -> None:
    (tmp_path / "audit.json").write_text(json.dumps({"dependencies": [SOUND]}))  # an earlier one's
    code = code if code >= 0 else 137
    assert verdict(noxfile, tmp_path, code, said).outcome == "failed"


@pytest.mark.parametrize(("outcome", "raises"), [("passed", False), ("not made", False), ("failed", True)])
def test_the_session(
    noxfile: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, outcome: str, raises: bool
) -> None:
    told: list[str] = []

    class Failed(Exception):
        pass

    class Session:
        posargs = ("--local",)
        virtualenv = type("Venv", (), {"is_sandboxed": False})
        log = staticmethod(told.append)
        warn = staticmethod(lambda text: told.append(f"warning: {text}"))

        def create_tmp(self) -> str:
            return str(tmp_path)

        def error(self, text: str) -> None:
            raise Failed(text)

    commands: list[list[str]] = []

    def fake(command: list[str], report: Path) -> Any:
        commands.append(command)
        return noxfile.Verdict(outcome, "why")

    monkeypatch.setattr(noxfile, "audited", fake)
    if raises:
        with pytest.raises(Failed, match="why"):
            noxfile.audit(Session())
    else:
        noxfile.audit(Session())
        assert told == ["audit passed: why" if outcome == "passed" else "warning: audit not made: why"]
    assert commands == [[sys.executable, "-m", "pip_audit", "--local"]]


def test_the_core_for_the_lowest_versions_is_there(noxfile: ModuleType) -> None:
    for name in noxfile.LOWEST_CORE:
        path, _, function = name.partition("::")
        assert (ROOT / path).exists(), name
        assert not function or f"def {function}(" in (ROOT / path).read_text(encoding="utf-8"), name
