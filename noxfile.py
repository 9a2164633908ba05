"""The project's checks; `nox -s tests` is the one a user runs, `.ci/run` calls them all.

Arguments after ``--`` go to pytest, mypy or the main job. In an environment that has ``.[dev]`` already,
``nox --no-venv`` runs a session there; `.ci/run` does, for one installation takes longer than most sessions.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

import nox

nox.options.sessions = ["tests", "lint", "types"]
nox.options.reuse_venv = "yes"
# Where nox keeps its environments; continuous integration wants fresh ones outside the checkout.
nox.options.envdir = os.environ.get("PROJECT_ENVIRONMENTS") or ".nox"

# Everything that a test would be skipped without.
TEST_EXTRAS = ".[dev,browser,cluster,demo]"

# Tiny models are fastest on one thread each; a file's tests stay together, its models are made once.
ONE_THREAD = {"OMP_NUM_THREADS": "1"}
SIDE_BY_SIDE = ("-n", "auto", "--maxprocesses", "4", "--dist", "loadfile")

# The README's command, cut short: a few steps, each evaluation on a handful of prompts.
MAIN_JOB = ("python", "-m", "src.train", "experiment=bicot_lora")
SHORT = (
    "trainer.max_steps=3",
    "evaluation.validation_prompts=16",
    "evaluation.test_prompts=16",
)


def _install(session: nox.Session, *what: str) -> None:
    """Install into the session's own environment; under ``--no-venv`` the current one is used as it is."""
    if session.virtualenv.is_sandboxed:
        session.install(*what)


@nox.session
def tests(session: nox.Session) -> None:
    """The fast suite."""
    _install(session, "-e", TEST_EXTRAS)
    session.run("pytest", "-m", "not slow", *SIDE_BY_SIDE, *session.posargs, env=ONE_THREAD)


@nox.session
def tests_slow(session: nox.Session) -> None:
    """The tests marked slow, without those of `tests_faults`."""
    _install(session, "-e", TEST_EXTRAS)
    session.run("pytest", "-m", "slow and not faults", *SIDE_BY_SIDE, *session.posargs, env=ONE_THREAD)


@nox.session
def tests_faults(session: nox.Session) -> None:
    """Runs that are broken on purpose, and go on: docs/RELIABILITY.md."""
    _install(session, "-e", TEST_EXTRAS)
    session.run("pytest", "-m", "faults", *session.posargs, env=ONE_THREAD)


# Processors round differently, and so do threads that share a sum. Each line is another machine, as far as one
# machine can be: which vector instructions torch's own kernels, MKL (its branch that every processor runs alike)
# and oneDNN use, and threads.
PROCESSORS = (
    {
        "ATEN_CPU_CAPABILITY": "default",
        "MKL_CBWR": "COMPATIBLE",
        "ONEDNN_MAX_CPU_ISA": "SSE41",
        "OMP_NUM_THREADS": "1",
    },
    {
        "ATEN_CPU_CAPABILITY": "avx2",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "OMP_NUM_THREADS": "2",
        "OMP_WAIT_POLICY": "PASSIVE",  # threads outnumber the cores here
    },
)
# What a test calls that compares tensors within a bound.
COMPARES = re.compile(r"\b(?:assert_close|assert_allclose|assert_near|assert_gradients_near)\(")
# Compared with what runs elsewhere, or in minutes: a whole training, and Triton's interpreter, which is NumPy.
NOT_NUMERIC = re.compile(r"tests/kernels/test_triton_\w+|tests/training/test_(?:run|variant_runs)")


def numeric_tests(root: Path) -> list[str]:
    """The files of tests that compare tensors within a bound, less `NOT_NUMERIC`: a new one is among them by itself."""
    files = (file for file in sorted((root / "tests").rglob("test_*.py")) if COMPARES.search(file.read_text("utf-8")))
    names = (file.relative_to(root).as_posix() for file in files)
    return [name for name in names if not NOT_NUMERIC.match(name.removesuffix(".py"))]


@nox.session
def tests_processors(session: nox.Session) -> None:
    """The fast suite's numeric tests as other processors and numbers of threads would round them.

    A failure is a bound that was fitted to one machine: compare in float64, or bound the error by its cause.
    """
    _install(session, "-e", TEST_EXTRAS)
    files = session.posargs or numeric_tests(Path(__file__).parent)
    for processor in PROCESSORS:
        session.log(" ".join(f"{name}={value}" for name, value in processor.items()))
        session.run("pytest", "-m", "not slow", *SIDE_BY_SIDE, *files, env=processor)


# Everything that tests/lowest_versions.txt has a version of, and the tests that lean on other packages most: one or two
# files a package, and a few whole runs. Kernels are left out, for torch and triton stay as installed.
LOWEST_EXTRAS = ".[browser,cluster,datasets,demo,loggers,serve,test]"
LOWEST_CORE = (
    *("tests/data/test_hub_dataset.py", "tests/data/test_module.py"),
    *("tests/policies/test_checkpoint.py", "tests/policies/test_export.py", "tests/policies/test_load.py"),
    "tests/policies/test_adapter_kinds.py::test_every_setting_of_peft_is_known_or_refused",
    "tests/policies/test_adapter_kinds.py::test_an_honoured_kind_is_what_peft_makes_of_it",
    *("tests/policies/test_decoder.py", "tests/policies/test_special_tokens.py", "tests/rollout/test_engine.py"),
    *("tests/rewards/test_aesthetic.py", "tests/rewards/test_clip_score.py", "tests/rewards/test_detector.py"),
    *("tests/rewards/test_git_vqa.py", "tests/rewards/test_hps.py", "tests/rewards/test_vlm_judge.py"),
    *("tests/rewards/test_connections.py", "tests/rewards/test_remote.py", "tests/serve_rewards"),
    *("tests/geneval/test_colors.py", "tests/geneval/test_detector.py", "tests/shapes/test_checkpoint.py"),
    *("tests/compare", "tests/loggers", "tests/training/test_loop.py", "tests/training/test_run.py"),
    *("tests/test_hub.py", "tests/test_intervals.py", "tests/cli/test_sweep.py"),
)


def _torch_as_here() -> list[str]:
    """torch, torchvision and triton at the versions that lie beside nox; nothing where there are none.

    pip then looks at one version of each. Which build of torch it takes, for a card or the CPU, is up to its index.
    """
    found = []
    for name in ("torch", "torchvision", "triton"):
        with contextlib.suppress(PackageNotFoundError):
            found.append(f"{name}=={version(name).partition('+')[0]}")
    return found


@nox.session
def tests_lowest(session: nox.Session) -> None:
    """The fast suite's core on the lowest versions that pyproject.toml allows, always in an environment of its own."""
    session.install("--no-compile", "--constraint", "tests/lowest_versions.txt", *_torch_as_here(), "-e", LOWEST_EXTRAS)
    where = session.posargs or LOWEST_CORE
    session.run("pytest", "-m", "not slow and not browser", *SIDE_BY_SIDE, *where, env=ONE_THREAD)


@nox.session
def fuzz(session: nox.Session) -> None:
    """Random prompt files, command lines and requests: so many seconds each (300, or `nox -s fuzz -- 60`)."""
    _install(session, "-e", TEST_EXTRAS)
    seconds, *more = session.posargs or ["300"]
    budget = {**ONE_THREAD, "FUZZ_SECONDS": seconds}
    session.run("pytest", "-s", "-m", "not slow", "tests/fuzz", *more, env=budget)


class Verdict(NamedTuple):
    """What an audit came to: passed, failed (the reason is told), or not made, as nobody answered."""

    outcome: str
    told: str


# What pip-audit, requests and urllib3 say when the vulnerability service cannot be reached or is down.
UNREACHABLE = re.compile(
    r"could not connect|may be blocking this service|not redirecting properly|max retries exceeded|timed out|timeout"
    r"|name or service not known|temporary failure in name resolution|failed to resolve|network is unreachable"
    r"|connection (?:refused|reset|aborted|broken)|proxyerror|5\d\d server error|(?:403|407|429) client error",
    re.IGNORECASE,
)


def audited(command: Sequence[str], report: Path) -> Verdict:
    """Run pip-audit, which says 1 both for a vulnerability and for a service that does not answer.

    command: up to its options. report: where its findings go; it writes them only after a whole audit.
    """
    report.unlink(missing_ok=True)
    asked = [*command, "--format", "json", "--output", str(report), "--progress-spinner", "off", "--skip-editable"]
    done = subprocess.run(asked, capture_output=True, text=True, check=False)
    if report.is_file():
        packages = json.loads(report.read_text(encoding="utf-8"))["dependencies"]
        found = [
            f"{package['name']} {package['version']}: {vulnerability['id']}, fixed in "
            + (", ".join(vulnerability["fix_versions"]) or "no version yet")
            for package in packages
            for vulnerability in package.get("vulns", ())
        ]
        if found:
            return Verdict("failed", "\n".join(["known vulnerabilities:", *found]))
        if done.returncode == 0:
            looked_at = sum("vulns" in package for package in packages)
            return Verdict("passed", f"no known vulnerability in {looked_at} of {len(packages)} packages")
    last = (done.stderr.strip().splitlines() or ["nothing said"])[-1]
    if done.returncode != 0 and UNREACHABLE.search(done.stderr):
        return Verdict("not made", f"the vulnerability service could not be reached: {last}")
    return Verdict("failed", f"pip-audit ended with code {done.returncode}: {last}")


@nox.session
def audit(session: nox.Session) -> None:
    """Known vulnerabilities of the installed packages; passes with a warning where the service cannot be reached."""
    _install(session, "-e", TEST_EXTRAS)
    python = Path(session.bin, "python") if session.virtualenv.is_sandboxed else sys.executable
    report = Path(session.create_tmp(), "audit.json").resolve()
    verdict = audited([str(python), "-m", "pip_audit", *session.posargs], report)
    if verdict.outcome == "failed":
        session.error(verdict.told)
    (session.log if verdict.outcome == "passed" else session.warn)(f"audit {verdict.outcome}: {verdict.told}")


@nox.session
def lint(session: nox.Session) -> None:
    """Ruff: rules and formatting."""
    _install(session, "ruff")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")


@nox.session
def types(session: nox.Session) -> None:
    """Static types."""
    _install(session, "-e", TEST_EXTRAS)
    session.run("mypy", *session.posargs)


@nox.session
def main_job(session: nox.Session) -> None:
    """The main job, short, into a folder of its own."""
    _install(session, "-e", ".")
    folder = Path(session.create_tmp(), "main_job").resolve()
    session.run(*MAIN_JOB, *SHORT, f"run.dir={folder}", *session.posargs)
