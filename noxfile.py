"""The project's checks; `nox -s tests` is the one a user runs, `.ci/run` calls them all.

Arguments after ``--`` go to pytest, mypy or the main job. In an environment that has ``.[dev]`` already,
``nox --no-venv`` runs a session there; `.ci/run` does, for one installation takes longer than most sessions.
"""

from __future__ import annotations

import os
from pathlib import Path

import nox

nox.options.sessions = ["tests", "lint", "types"]
nox.options.reuse_venv = "yes"
# Where nox keeps its environments; continuous integration wants fresh ones outside the checkout.
nox.options.envdir = os.environ.get("PROJECT_ENVIRONMENTS") or ".nox"

# Everything that a test would be skipped without.
TEST_EXTRAS = ".[dev,browser,cluster,demo]"

# Tiny models are fastest on one thread each.
ONE_THREAD = {"OMP_NUM_THREADS": "1"}

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
    session.run("pytest", "-m", "not slow", *session.posargs, env=ONE_THREAD)


@nox.session
def tests_slow(session: nox.Session) -> None:
    """The tests marked slow, without those of `tests_faults`."""
    _install(session, "-e", TEST_EXTRAS)
    session.run("pytest", "-m", "slow and not faults", *session.posargs, env=ONE_THREAD)


@nox.session
def tests_faults(session: nox.Session) -> None:
    """Runs that are broken on purpose, and go on: docs/RELIABILITY.md."""
    _install(session, "-e", TEST_EXTRAS)
    session.run("pytest", "-m", "faults", *session.posargs, env=ONE_THREAD)


@nox.session
def fuzz(session: nox.Session) -> None:
    """Random prompt files, command lines and requests: so many seconds each (300, or `nox -s fuzz -- 60`)."""
    _install(session, "-e", TEST_EXTRAS)
    seconds, *more = session.posargs or ["300"]
    budget = {**ONE_THREAD, "FUZZ_SECONDS": seconds}
    session.run("pytest", "-s", "-m", "not slow", "tests/fuzz", *more, env=budget)


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
