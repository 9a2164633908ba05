"""docs/EXTENDING.md is right as written: its reward expert is run from a package outside of the checkout."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from src.config.schema import ROOT

PAGE = (ROOT / "docs" / "EXTENDING.md").read_text(encoding="utf-8")
SHORT = (
    *("logger=csv", "trainer.max_steps=2", "trainer.progress_bar=false", "rollout.prompts_per_step=2"),
    *("evaluation.validation_prompts=4", "evaluation.test_prompts=4", "evaluation.every=2"),
)


def example(name: str) -> str:
    """The code block behind the marker comment `name`."""
    found = re.search(rf"<!-- example: {re.escape(name)} -->\n```\w+\n(.*?)```", PAGE, re.DOTALL)
    assert found, f"docs/EXTENDING.md has no example {name}"
    return found[1]


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A folder outside of the checkout that holds the page's files as written."""
    for name in ("my_rewards/colourful.py", "rewards/colourful.yaml"):
        path = tmp_path / name
        path.parent.mkdir(parents=True)
        path.write_text(example(name), encoding="utf-8")
    return tmp_path


def train(outside: Path, arguments: list[str]) -> dict[str, object]:
    """Run the command of the page in a folder of its own; returns the first rollout's scores."""
    run = outside / "run"
    command = [*arguments, f"run.dir={run}", *SHORT]
    environment = {**os.environ, "PYTHONPATH": f"{outside}{os.pathsep}{ROOT}"}
    done = subprocess.run(command, cwd=outside, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads((run / "rollouts.jsonl").read_text().splitlines()[0])["scores"]


def test_the_yaml_as_written(outside: Path) -> None:
    command = [sys.executable, "-m", "src.train", "experiment=bicot_lora", "rewards=colourful", "plugins=[my_rewards]"]
    scores = train(outside, [*command, f"hydra.searchpath=[file://{outside}]"])
    assert set(scores) == {"shapes", "colourful"}


def test_the_command_line_as_written(outside: Path) -> None:
    words = example("command line").split()
    assert words[0] == "python"
    scores = train(outside, [sys.executable, *words[1:]])
    assert set(scores) == {"shapes", "colourful"}
    assert all(0.0 <= float(str(score)) <= 1.0 for score in scores.values())


def test_the_policy_function_as_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from src.config.allowed_targets import factory
    from src.config.errors import UserError

    (tmp_path / "my_models").mkdir()
    text = example("my_models/policy.py")
    (tmp_path / "my_models" / "policy.py").write_text(text, encoding="utf-8")
    (tmp_path / "my_models" / "unmarked.py").write_text(text.replace("@makes", "# @makes"), encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    node = {"_target_": "my_models.policy.load", "path": "/weights"}
    made, settings = factory(node, "model", ["my_models"], "model")
    assert (made.__name__, settings) == ("load", {"path": "/weights"})
    with pytest.raises(UserError, match="makes"):
        factory({"_target_": "my_models.unmarked.load"}, "model", ["my_models"], "model")
